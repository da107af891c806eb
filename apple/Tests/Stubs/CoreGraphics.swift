// What the package uses of Core Graphics, to type-check the package on other systems. Foundation has the geometry there.
import Foundation

public class CGImage {
    public var width: Int { 0 }
    public var height: Int { 0 }
}

public class CGColorSpace {
    public static let sRGB = "sRGB"
    public init?(name: String) {}
}

public func CGColorSpaceCreateDeviceRGB() -> CGColorSpace { fatalError() }

public enum CGImageAlphaInfo: UInt32 { case noneSkipLast = 5 }

public class CGContext {
    public init?(
        data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int, bytesPerRow: Int,
        space: CGColorSpace, bitmapInfo: UInt32
    ) {}
    public func draw(_ image: CGImage, in rect: CGRect) {}
}
