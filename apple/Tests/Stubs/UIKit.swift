// What the package uses of UIKit, to type-check the package on other systems. `UIApplication.shared` is missing: the
// compiler refuses it to code that extensions may contain.
import AppleFoundation
import Foundation

@MainActor public class UIApplication {
    public enum State: Sendable { case active, inactive, background }
    nonisolated public static let willResignActiveNotification = Notification.Name("resign")
    nonisolated public static let didBecomeActiveNotification = Notification.Name("active")
    nonisolated public static let didEnterBackgroundNotification = Notification.Name("background")
    nonisolated public static let willEnterForegroundNotification = Notification.Name("foreground")
    nonisolated public static let protectedDataWillBecomeUnavailableNotification = Notification.Name("locked")
    nonisolated public static let protectedDataDidBecomeAvailableNotification = Notification.Name("unlocked")
    public var applicationState: State { .active }
    public var isProtectedDataAvailable: Bool { true }
    nonisolated public static func responds(to selector: Selector) -> Bool { true }
    nonisolated public static func perform(_ selector: Selector) -> Unmanaged<AnyObject>? { nil }
}
