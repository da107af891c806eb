// What Apple's systems decode.
#if canImport(ImageIO)
import CoreGraphics
import Foundation
import ImageIO
internal import MynahCore

extension Media {
    /// A picture. Its pixels are copied once, as they are drawn.
    public static func image(_ image: CGImage) throws -> Media {
        let (pixels, width) = try rgb(of: image)
        return .rgb(pixels, width: width)
    }

    /// The pixels of a picture: what is transparent is black.
    private static func rgb(of image: CGImage) throws -> (Data, width: Int) {
        let (width, height) = (image.width, image.height)
        // Core Graphics draws no pixels of three bytes.
        var pixels = Data(count: 4 * width * height)
        let isDrawn = pixels.withUnsafeMutableBytes { bytes in
            guard
                let context = CGContext(
                    data: bytes.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
                    space: CGColorSpace(name: CGColorSpace.sRGB) ?? CGColorSpaceCreateDeviceRGB(),
                    bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            for pixel in 0..<width * height {
                bytes[3 * pixel] = bytes[4 * pixel]
                bytes[3 * pixel + 1] = bytes[4 * pixel + 1]
                bytes[3 * pixel + 2] = bytes[4 * pixel + 2]
            }
            return true
        }
        guard isDrawn else { throw MynahError(.invalidRequest, "a picture of \(width) x \(height) pixels cannot be drawn") }
        pixels.removeLast(width * height)
        return (pixels, width)
    }

    /// A picture in a format that ImageIO decodes, such as HEIC; `nil` for another format.
    static func systemImage(_ data: Data) throws -> MynahCore.Image? {
        guard let source = CGImageSourceCreateWithData(data as CFData, nil),
            let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
            let width = properties[kCGImagePropertyPixelWidth] as? Int,
            let height = properties[kCGImagePropertyPixelHeight] as? Int
        else { return nil }
        // Only a thumbnail has the orientation applied. The size of the whole picture shrinks nothing.
        let options: [CFString: Any] = [
            kCGImageSourceCreateThumbnailFromImageAlways: true,
            kCGImageSourceCreateThumbnailWithTransform: true,
            kCGImageSourceThumbnailMaxPixelSize: max(width, height),
        ]
        guard let image = CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary) else { return nil }
        let (pixels, columns) = try rgb(of: image)
        return try Image.fromRgb(width: size(columns, "width"), rgb: pixels)
    }
}
#endif

#if canImport(UIKit)
import UIKit

extension Media {
    /// A picture with its orientation applied.
    public static func image(_ image: UIImage) throws -> Media {
        if image.imageOrientation == .up, let drawn = image.cgImage { return try .image(drawn) }
        let format = UIGraphicsImageRendererFormat()
        format.scale = image.scale
        let upright = UIGraphicsImageRenderer(size: image.size, format: format).image { _ in image.draw(at: .zero) }
        guard let drawn = upright.cgImage else { throw MynahError(.invalidRequest, "the picture has no pixels") }
        return try .image(drawn)
    }
}
#elseif canImport(AppKit)
import AppKit

extension Media {
    /// A picture.
    public static func image(_ image: NSImage) throws -> Media {
        guard let drawn = image.cgImage(forProposedRect: nil, context: nil, hints: nil) else {
            throw MynahError(.invalidRequest, "the picture has no pixels")
        }
        return try .image(drawn)
    }
}
#endif

#if canImport(AVFoundation)
import AVFoundation

extension Media {
    /// The most frames of a movie, which are two for each second where that is less.
    private static let mostFrames = 256
    /// The longest side of a frame, in pixels.
    private static let longestSide = 768.0

    /// The frames of a movie.
    func movie(_ url: URL) throws -> MynahCore.Video {
        try waiting { try await Self.frames(of: url) }
    }

    private static func frames(of url: URL) async throws -> MynahCore.Video {
        let asset = AVURLAsset(url: url)
        let seconds = try await asset.load(.duration).seconds
        guard seconds.isFinite, seconds > 0 else {
            throw MynahError(.invalidRequest, "\(url.path): not a GIF or a movie that this system plays")
        }
        let generator = AVAssetImageGenerator(asset: asset)
        generator.appliesPreferredTrackTransform = true
        generator.requestedTimeToleranceBefore = .zero
        generator.requestedTimeToleranceAfter = .zero
        generator.maximumSize = CGSize(width: longestSide, height: longestSide)
        let count = max(1, min(mostFrames, Int((2 * seconds).rounded())))
        let rate = Double(count) / seconds
        var frames: [MynahCore.Image] = []
        for index in 0..<count {
            let time = CMTime(seconds: Double(index) / rate, preferredTimescale: 600)
            let (pixels, width) = try rgb(of: try await generator.image(at: time).image)
            frames.append(try Image.fromRgb(width: size(width, "width"), rgb: pixels))
        }
        return try Video.fromFrames(frames: frames, framesPerSecond: rate)
    }
}

/// Waits on this thread, which is none of Swift's tasks.
private func waiting<Value: Sendable>(_ body: @escaping @Sendable () async throws -> Value) throws -> Value {
    let outcome = Locked<Result<Value, any Error>?>(nil)
    let done = DispatchSemaphore(value: 0)
    Task.detached {
        do {
            let value = try await body()
            outcome { $0 = .success(value) }
        } catch {
            outcome { $0 = .failure(error) }
        }
        done.signal()
    }
    done.wait()
    guard let outcome = outcome({ $0 }) else { throw CancellationError() }
    return try outcome.get()
}
#endif
