// What the package uses of Foundation and Dispatch that only Apple's systems have, to type-check the package on others.
import Dispatch
import Foundation
import FoundationNetworking

extension ProcessInfo {
    public enum ThermalState: Int, Sendable { case nominal, fair, serious, critical }
    public static let thermalStateDidChangeNotification = Notification.Name("thermalState")
    public var thermalState: ThermalState { .nominal }
    public func performExpiringActivity(withReason: String, using block: @escaping @Sendable (Bool) -> Void) {}
}

extension Notification.Name {
    public static let NSExtensionHostWillResignActive = Notification.Name("resign")
    public static let NSExtensionHostDidBecomeActive = Notification.Name("active")
    public static let NSExtensionHostDidEnterBackground = Notification.Name("background")
    public static let NSExtensionHostWillEnterForeground = Notification.Name("foreground")
}

public protocol DispatchSourceMemoryPressure: Sendable {
    func setEventHandler(_ handler: @escaping @Sendable () -> Void)
    func activate()
}

extension DispatchSource {
    public struct MemoryPressureEvent: OptionSet, Sendable {
        public let rawValue: UInt
        public init(rawValue: UInt) { self.rawValue = rawValue }
        public static let warning = MemoryPressureEvent(rawValue: 1)
        public static let critical = MemoryPressureEvent(rawValue: 2)
    }
    public static func makeMemoryPressureSource(eventMask: MemoryPressureEvent) -> any DispatchSourceMemoryPressure {
        fatalError()
    }
}

public struct Selector: Sendable {}
public func NSSelectorFromString(_ name: String) -> Selector { Selector() }

extension URL {
    public func startAccessingSecurityScopedResource() -> Bool { false }
    public func stopAccessingSecurityScopedResource() {}
}

extension URLSessionConfiguration {
    public class func background(withIdentifier: String) -> URLSessionConfiguration { .default }
}
