import Foundation
internal import MynahCore

/// A picture, a clip or a recording: a file, its bytes, or what it is made of. It is read when a model needs it.
///
/// ```swift
/// let answer = try await session.respond(to: Prompt([.user("What is this?", images: [.file(url)])]))
/// ```
///
/// Pictures are JPEG, PNG, WebP and GIF, and on Apple's systems what ImageIO decodes too, such as HEIC. Clips are GIF,
/// folders of pictures, and frames, and on Apple's systems movies. Recordings are WAV, AIFF, FLAC, MP3, M4A and Ogg.
public struct Media: Sendable, Hashable {
    enum Source: Sendable, Hashable {
        case file(URL)
        case data(Data)
        case pixels(Data, width: Int)
        case frames([Media], framesPerSecond: Double?)
        case samples([Float], sampleRate: Int, channels: Int)
    }

    let source: Source
    /// What the core has made of it. Copies share it.
    private let handles: Handles

    init(_ source: Source) {
        self.source = source
        handles = Handles()
    }

    /// A file. Access to files outside the sandbox lasts as long as the app asks for it.
    public static func file(_ url: URL) -> Media { Media(.file(url)) }

    /// The bytes of a file.
    public static func data(_ data: Data) -> Media { Media(.data(data)) }

    /// A picture of rows of `width` pixels, with one byte for each of red, green and blue.
    public static func rgb(_ pixels: Data, width: Int) -> Media { Media(.pixels(pixels, width: width)) }

    /// A clip of pictures of one size. With the frames of each second, a model takes as many of them as it needs; without
    /// it, all of them.
    public static func frames(_ frames: [Media], framesPerSecond: Double? = nil) -> Media {
        Media(.frames(frames, framesPerSecond: framesPerSecond))
    }

    /// Samples between -1 and 1, channel after channel within each frame.
    public static func samples(_ samples: [Float], sampleRate: Int, channels: Int = 1) -> Media {
        Media(.samples(samples, sampleRate: sampleRate, channels: channels))
    }

    public static func == (one: Media, other: Media) -> Bool { one.source == other.source }
    public func hash(into hasher: inout Hasher) { hasher.combine(source) }
}

/// Pictures and clips in the core, made once.
private final class Handles: Sendable {
    let image = Locked<MynahCore.Image?>(nil)
    let video = Locked<MynahCore.Video?>(nil)
}

extension Media {
    /// The picture in the core. It reads and converts, so it runs on no thread of Swift's tasks.
    func image() throws -> MynahCore.Image {
        try handles.image { image in
            let made = try image ?? makeImage()
            image = made
            return made
        }
    }

    private func makeImage() throws -> MynahCore.Image {
        switch source {
        case .file(let url): return try Self.image(try contents(url), url.path)
        case .data(let data): return try Self.image(data, nil)
        case .pixels(let pixels, let width): return try Image.fromRgb(width: size(width, "width"), rgb: pixels)
        case .frames, .samples: throw MynahError(.invalidRequest, "a clip or a recording is no picture")
        }
    }

    private static func image(_ data: Data, _ path: String?) throws -> MynahCore.Image {
        do {
            return try calling { try Image.fromBytes(bytes: data) }
        } catch let error as MynahError {
            #if canImport(ImageIO)
            if let decoded = try systemImage(data) { return decoded }
            #endif
            throw path.map { MynahError(error.code, "\($0): \(error.message)") } ?? error
        }
    }

    /// The clip in the core.
    func video() throws -> MynahCore.Video {
        try handles.video { video in
            let made = try video ?? makeVideo()
            video = made
            return made
        }
    }

    private func makeVideo() throws -> MynahCore.Video {
        switch source {
        case .file(let url):
            do {
                return try calling { try Video.open(path: url.path) }
            } catch let error as MynahError {
                #if canImport(AVFoundation)
                if error.code == .invalidRequest { return try movie(url) }
                #endif
                throw error
            }
        case .data(let data): return try Video.fromGif(bytes: data)
        case .frames(let frames, let rate):
            return try Video.fromFrames(frames: frames.map { try $0.image() }, framesPerSecond: rate)
        case .pixels, .samples: throw MynahError(.invalidRequest, "a picture or a recording is no clip")
        }
    }

    private func contents(_ url: URL) throws -> Data {
        do {
            return try Data(contentsOf: url, options: .mappedIfSafe)
        } catch {
            let isMissing = (error as? CocoaError)?.code == .fileReadNoSuchFile
            throw MynahError(isMissing ? .notFound : .damaged, "\(url.path): \(error.localizedDescription)")
        }
    }
}

/// The JSON has the bytes of a picture, and the path of a clip or a recording.
extension Media: Codable {
    private enum CodingKeys: String, CodingKey {
        case file, data, rgb, width, frames, fps, samples, sampleRate, channels
    }

    public init(from decoder: any Decoder) throws {
        let fields = try decoder.container(keyedBy: CodingKeys.self)
        if let data = try fields.decodeIfPresent(Data.self, forKey: .data) {
            self.init(.data(data))
        } else if let pixels = try fields.decodeIfPresent(Data.self, forKey: .rgb) {
            self.init(.pixels(pixels, width: try fields.decode(Int.self, forKey: .width)))
        } else if let frames = try fields.decodeIfPresent([Media].self, forKey: .frames) {
            self.init(.frames(frames, framesPerSecond: try fields.decodeIfPresent(Double.self, forKey: .fps)))
        } else if let samples = try fields.decodeIfPresent([Float].self, forKey: .samples) {
            self.init(
                .samples(
                    samples, sampleRate: try fields.decode(Int.self, forKey: .sampleRate),
                    channels: try fields.decode(Int.self, forKey: .channels)))
        } else {
            self.init(.file(URL(fileURLWithPath: try fields.decode(String.self, forKey: .file))))
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var fields = encoder.container(keyedBy: CodingKeys.self)
        switch source {
        case .file(let url): try fields.encode(url.path, forKey: .file)
        case .data(let data): try fields.encode(data, forKey: .data)
        case .pixels(let pixels, let width):
            try fields.encode(pixels, forKey: .rgb)
            try fields.encode(width, forKey: .width)
        case .frames(let frames, let rate):
            try fields.encode(frames, forKey: .frames)
            try fields.encodeIfPresent(rate, forKey: .fps)
        case .samples(let samples, let rate, let channels):
            try fields.encode(samples, forKey: .samples)
            try fields.encode(rate, forKey: .sampleRate)
            try fields.encode(channels, forKey: .channels)
        }
    }

    /// The same picture with its bytes, so that a saved conversation does not depend on a file.
    func embedded() throws -> Media {
        if case .file(let url) = source { .data(try contents(url)) } else { self }
    }
}

/// Runs what reads and computes for long on a thread that no task waits for.
func onThread<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        DispatchQueue.global().async { continuation.resume(with: Result { try body() }) }
    }
}
