#if canImport(UIKit) && !os(watchOS)
import UIKit
#endif
import Foundation

/// The notifications of the system as signals of ``AppLifecycle``. This is the only code of the package that other
/// systems than Apple's do not run.
struct AppLifecycleObserver: AppLifecycleSource {
    func start(_ deliver: @escaping @Sendable (AppLifecycle.Delivery) -> Void) {
        #if canImport(Darwin)
        let center = NotificationCenter.default
        center.addObserver(forName: ProcessInfo.thermalStateDidChangeNotification, object: nil, queue: nil) { _ in
            let state = AppLifecycle.ThermalState(rawValue: ProcessInfo.processInfo.thermalState.rawValue) ?? .nominal
            deliver(AppLifecycle.Delivery(signal: .thermalState(state)) {})
        }
        let pressure = DispatchSource.makeMemoryPressureSource(eventMask: [.warning, .critical])
        pressure.setEventHandler { deliver(AppLifecycle.Delivery(signal: .memoryWarning) {}) }
        pressure.activate()
        Self.memoryPressure { $0 = pressure }
        #endif
        #if canImport(UIKit) && !os(watchOS)
        let signals: [(Notification.Name, AppLifecycle.Signal)] = [
            (UIApplication.didEnterBackgroundNotification, .background),
            (UIApplication.willEnterForegroundNotification, .foreground),
            (UIApplication.protectedDataWillBecomeUnavailableNotification, .locked),
            (UIApplication.protectedDataDidBecomeAvailableNotification, .unlocked),
        ]
        for (name, signal) in signals {
            // UIKit posts these on the main thread.
            center.addObserver(forName: name, object: nil, queue: nil) { _ in
                MainActor.assumeIsolated {
                    let time = BackgroundTime()
                    deliver(AppLifecycle.Delivery(signal: signal) { Task { @MainActor in time.end() } })
                }
            }
        }
        #endif
    }

    #if canImport(Darwin)
    private static let memoryPressure = Locked<(any DispatchSourceMemoryPressure)?>(nil)
    #endif
}

#if canImport(UIKit) && !os(watchOS)
/// Keeps the system from suspending the process until the device is idle.
@MainActor
private final class BackgroundTime {
    private var task = UIBackgroundTaskIdentifier.invalid

    init() {
        // The system kills an app that does not end its task when the time expires.
        task = UIApplication.shared.beginBackgroundTask(withName: "Mynah suspends the device") { self.end() }
    }

    /// Ends the task, once.
    func end() {
        guard task != .invalid else { return }
        UIApplication.shared.endBackgroundTask(task)
        task = .invalid
    }
}
#endif
