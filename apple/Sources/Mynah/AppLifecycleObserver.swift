import Foundation

#if canImport(UIKit) && !os(watchOS)
import UIKit
#endif

/// The notifications of the system as signals of ``AppLifecycle``. Only Apple's systems run this code.
struct AppLifecycleObserver: AppLifecycleSource {
    func start(_ deliver: @escaping @Sendable (AppLifecycle.Delivery) -> Void) async -> [AppLifecycle.Signal] {
        var signals: [AppLifecycle.Signal] = []
        #if canImport(Darwin)
        _ = NotificationCenter.default.addObserver(
            forName: ProcessInfo.thermalStateDidChangeNotification, object: nil, queue: nil
        ) { _ in deliver(AppLifecycle.Delivery(Self.thermalState)) }
        signals.append(Self.thermalState)
        let pressure = DispatchSource.makeMemoryPressureSource(eventMask: [.warning, .critical])
        pressure.setEventHandler { deliver(AppLifecycle.Delivery(.memoryWarning)) }
        pressure.activate()
        Self.memoryPressure { $0 = pressure }
        #endif
        #if canImport(UIKit) && !os(watchOS)
        signals += await Self.observeApplication(deliver)
        #endif
        return signals
    }

    #if canImport(Darwin)
    private static let memoryPressure = Locked<(any DispatchSourceMemoryPressure)?>(nil)

    private static var thermalState: AppLifecycle.Signal {
        .thermalState(AppLifecycle.ThermalState(rawValue: ProcessInfo.processInfo.thermalState.rawValue) ?? .nominal)
    }
    #endif

    #if canImport(UIKit) && !os(watchOS)
    /// The longest time for which the main thread waits until the device is idle. The system kills an app whose main
    /// thread takes about five seconds to enter the background.
    private static let longestWait = DispatchTimeInterval.seconds(2)

    /// Observes the app, or the host of an extension. UIKit posts on the main thread, so no change is missed between
    /// reading the state and observing it.
    @MainActor
    private static func observeApplication(
        _ deliver: @escaping @Sendable (AppLifecycle.Delivery) -> Void
    ) -> [AppLifecycle.Signal] {
        let signals: [(Notification.Name, AppLifecycle.Signal)] = [
            (UIApplication.willResignActiveNotification, .inactive),
            (UIApplication.didBecomeActiveNotification, .active),
            (UIApplication.didEnterBackgroundNotification, .background),
            (UIApplication.willEnterForegroundNotification, .foreground),
            (UIApplication.protectedDataWillBecomeUnavailableNotification, .locked),
            (UIApplication.protectedDataDidBecomeAvailableNotification, .unlocked),
            (.NSExtensionHostWillResignActive, .inactive),
            (.NSExtensionHostDidBecomeActive, .active),
            (.NSExtensionHostDidEnterBackground, .background),
            (.NSExtensionHostWillEnterForeground, .foreground),
        ]
        for (name, signal) in signals {
            _ = NotificationCenter.default.addObserver(forName: name, object: nil, queue: nil) { _ in
                let delivery = AppLifecycle.Delivery(signal)
                let suspends = signal == .background || signal == .locked
                if suspends { delayProcessSuspension(until: delivery) }
                deliver(delivery)
                // The system refuses work that reaches the GPU after this notification.
                if suspends { delivery.wait(atMost: longestWait) }
            }
        }
        return applicationState
    }

    /// Keeps the system from suspending the process until the delivery is finished or the granted time is over.
    private static func delayProcessSuspension(until delivery: AppLifecycle.Delivery) {
        let hasExpired = Locked(false)
        ProcessInfo.processInfo.performExpiringActivity(withReason: "Mynah waits until the device is idle") { isExpired in
            // The activity lasts until its first call returns; the system makes a second one when the time is over.
            hasExpired { $0 = $0 || isExpired }
            while !hasExpired({ $0 }) && !delivery.wait(atMost: .milliseconds(100)) {}
        }
    }

    /// The state of an app that the system has started in the background or while the phone is locked. Extensions have no
    /// application, and the compiler refuses its name in code that they may contain.
    @MainActor
    private static var applicationState: [AppLifecycle.Signal] {
        let shared = NSSelectorFromString("sharedApplication")
        guard Bundle.main.bundleURL.pathExtension != "appex", UIApplication.responds(to: shared),
            let application = UIApplication.perform(shared)?.takeUnretainedValue() as? UIApplication
        else { return [] }
        var signals: [AppLifecycle.Signal] = []
        if application.applicationState == .background { signals.append(.background) }
        if !application.isProtectedDataAvailable { signals.append(.locked) }
        return signals
    }
    #endif
}
