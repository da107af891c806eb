#if canImport(UIKit) && !os(watchOS)
import UIKit
#endif
import Foundation

/// The system's notifications as ``Life`` takes them. The only code of the package that other systems than Apple's
/// do not run.
struct LifeObserver: LifeSource {
    func start(_ tell: @escaping @Sendable (Life.News) -> Void) {
        #if canImport(Darwin)
        let center = NotificationCenter.default
        center.addObserver(forName: ProcessInfo.thermalStateDidChangeNotification, object: nil, queue: nil) { _ in
            let state = Life.ThermalState(rawValue: ProcessInfo.processInfo.thermalState.rawValue) ?? .nominal
            tell(Life.News(signal: .thermalState(state)) {})
        }
        let pressure = DispatchSource.makeMemoryPressureSource(eventMask: [.warning, .critical])
        pressure.setEventHandler { tell(Life.News(signal: .memoryWarning) {}) }
        pressure.activate()
        Self.memoryPressure { $0 = pressure }
        #endif
        #if canImport(UIKit) && !os(watchOS)
        let signals: [(Notification.Name, Life.Signal)] = [
            (UIApplication.didEnterBackgroundNotification, .background),
            (UIApplication.willEnterForegroundNotification, .foreground),
            (UIApplication.protectedDataWillBecomeUnavailableNotification, .locked),
            (UIApplication.protectedDataDidBecomeAvailableNotification, .unlocked),
        ]
        for (name, signal) in signals {
            // UIKit posts these on the main thread.
            center.addObserver(forName: name, object: nil, queue: nil) { _ in
                MainActor.assumeIsolated {
                    // The system waits with suspending the process until the device is idle.
                    let task = UIApplication.shared.beginBackgroundTask()
                    tell(Life.News(signal: signal) {
                        Task { @MainActor in UIApplication.shared.endBackgroundTask(task) }
                    })
                }
            }
        }
        #endif
    }

    #if canImport(Darwin)
    private static let memoryPressure = Locked<(any DispatchSourceMemoryPressure)?>(nil)
    #endif
}
