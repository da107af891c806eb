#if canImport(UIKit) && !os(watchOS)
import UIKit
#endif
import Foundation

/// The system's notifications as ``Life`` takes them. The only code of the package that other systems than Apple's
/// do not run.
enum LifeObserver {
    static func start() {
        #if canImport(Darwin)
        observe(ProcessInfo.thermalStateDidChangeNotification) {
            .thermalState(Life.ThermalState(rawValue: ProcessInfo.processInfo.thermalState.rawValue) ?? .nominal)
        }
        let pressure = DispatchSource.makeMemoryPressureSource(eventMask: [.warning, .critical])
        pressure.setEventHandler { pass(.memoryWarning) }
        pressure.activate()
        memoryPressure { $0 = pressure }
        #endif
        #if canImport(UIKit) && !os(watchOS)
        observeApplication(UIApplication.didEnterBackgroundNotification, .background)
        observeApplication(UIApplication.willEnterForegroundNotification, .foreground)
        observeApplication(UIApplication.protectedDataWillBecomeUnavailableNotification, .locked)
        observeApplication(UIApplication.protectedDataDidBecomeAvailableNotification, .unlocked)
        #endif
    }

    #if canImport(Darwin)
    private static let memoryPressure = Locked<(any DispatchSourceMemoryPressure)?>(nil)

    private static func observe(_ name: Notification.Name, _ signal: @escaping @Sendable () -> Life.Signal) {
        NotificationCenter.default.addObserver(forName: name, object: nil, queue: nil) { _ in pass(signal()) }
    }

    private static func pass(_ signal: Life.Signal) {
        Task { try? await Life.handle(signal) }
    }
    #endif

    #if canImport(UIKit) && !os(watchOS)
    /// UIKit posts these on the main thread.
    private static func observeApplication(_ name: Notification.Name, _ signal: Life.Signal) {
        NotificationCenter.default.addObserver(forName: name, object: nil, queue: nil) { _ in
            MainActor.assumeIsolated {
                // The system waits with suspending the process until the device is idle.
                let task = UIApplication.shared.beginBackgroundTask()
                Task { @MainActor in
                    try? await Life.handle(signal)
                    UIApplication.shared.endBackgroundTask(task)
                }
            }
        }
    }
    #endif
}
