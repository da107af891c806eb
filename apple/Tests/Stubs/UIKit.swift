// What the package uses of UIKit, to type-check the package on other systems. `UIApplication.shared` is missing: the
// compiler refuses it to code that extensions may contain.
import AppleFoundation
import CoreGraphics
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

public class UIImage {
    public enum Orientation: Sendable { case up, down }
    public var imageOrientation: Orientation { .up }
    public var cgImage: CGImage? { nil }
    public var scale: CGFloat { 1 }
    public var size: CGSize { .zero }
    public func draw(at point: CGPoint) {}
}

public class UIGraphicsImageRendererFormat {
    public init() {}
    public var scale: CGFloat = 1
}

public class UIGraphicsImageRendererContext {}

public class UIGraphicsImageRenderer {
    public init(size: CGSize, format: UIGraphicsImageRendererFormat) {}
    public func image(actions: (UIGraphicsImageRendererContext) -> Void) -> UIImage { fatalError() }
}
