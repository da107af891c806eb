// What the package uses of AVFoundation, to type-check the package on other systems.
import CoreGraphics
import Foundation

public struct CMTime: Sendable {
    public var seconds: Double { 0 }
    public init(seconds: Double, preferredTimescale: Int32) {}
    public static let zero = CMTime(seconds: 0, preferredTimescale: 1)
}

public struct AVAsyncProperty<Value: Sendable>: Sendable {}
extension AVAsyncProperty where Value == CMTime {
    public static var duration: AVAsyncProperty<CMTime> { AVAsyncProperty() }
}

public class AVURLAsset: @unchecked Sendable {
    public init(url: URL) {}
    public func load<Value: Sendable>(_ property: AVAsyncProperty<Value>) async throws -> Value { fatalError() }
}

public class AVAssetImageGenerator {
    public init(asset: AVURLAsset) {}
    public var appliesPreferredTrackTransform = false
    public var requestedTimeToleranceBefore = CMTime.zero
    public var requestedTimeToleranceAfter = CMTime.zero
    public var maximumSize = CGSize.zero
    public func image(at time: CMTime) async throws -> sending (image: CGImage, actualTime: CMTime) { fatalError() }
}
