// What the package uses of ImageIO, to type-check the package on other systems.
import CoreGraphics
import Foundation

public typealias CFString = String
public typealias CFData = Data
public typealias CFDictionary = Any
public class CGImageSource {}
public let kCGImagePropertyPixelWidth = "width"
public let kCGImagePropertyPixelHeight = "height"
public let kCGImageSourceCreateThumbnailFromImageAlways = "always"
public let kCGImageSourceCreateThumbnailWithTransform = "transform"
public let kCGImageSourceThumbnailMaxPixelSize = "size"
public func CGImageSourceCreateWithData(_ data: CFData, _ options: CFDictionary?) -> CGImageSource? { nil }
public func CGImageSourceCopyPropertiesAtIndex(
    _ source: CGImageSource, _ index: Int, _ options: CFDictionary?
) -> CFDictionary? { nil }
public func CGImageSourceCreateThumbnailAtIndex(
    _ source: CGImageSource, _ index: Int, _ options: CFDictionary?
) -> CGImage? { nil }
