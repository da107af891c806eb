import Foundation
internal import MynahCore

/// Audio as a codec stores it.
public enum EncodedAudio: Sendable, Hashable {
    /// Codes of one stretch after the other; most codecs have one stretch.
    case codes([Codes])
    /// Continuous features of each frame, `[frames][bins]`.
    case features([[Float]])

    /// Codes of one stretch of audio.
    public struct Codes: Sendable, Hashable {
        /// The codes of each codebook, in the order of time. Codebooks may differ in their frame rate.
        public var codebooks: [[UInt32]]
        /// Factor of the decoded samples, in codecs that normalise what they encode.
        public var scale: Float?

        public init(codebooks: [[UInt32]], scale: Float? = nil) {
            self.codebooks = codebooks
            self.scale = scale
        }

        fileprivate var core: MynahCore.Codes { MynahCore.Codes(codebooks: codebooks, scale: scale) }
    }
}

/// An audio codec or vocoder in memory. The last reference to it and to its streams frees its weights, or ``unload()``
/// does.
public final class AudioCodec: Sendable {
    let core: MynahCore.AudioCodec
    /// The `model_type` of the config.
    public let modelType: String
    /// Samples a second, in Hz.
    public let sampleRate: Int
    public let channels: Int

    private init(_ core: MynahCore.AudioCodec) {
        self.core = core
        modelType = core.modelType()
        sampleRate = Int(core.sampleRate())
        channels = Int(core.channels())
    }

    /// Loads a codec, and downloads it first if it is not on the disk; see ``Model/load(_:options:progress:)``. Options of
    /// prompts and caches have no effect.
    public static func load(
        _ locator: some ModelLocator, options: LoadOptions = .init(),
        progress: (@Sendable (LoadEvent) throws -> Void)? = nil
    ) async throws -> AudioCodec {
        guard case .codec(let model) = try await loaded(.codec, locator, options, progress) else {
            throw LoadedModel.otherKind
        }
        return AudioCodec(model)
    }

    /// Encodes a recording of any rate and number of channels.
    public func encode(_ audio: Media) async throws -> EncodedAudio {
        let (core, canceller, audio) = (core, CallCanceller(), try audio.recording())
        return EncodedAudio(
            try await cancellable(canceller.cancel) { try await core.encode(audio: audio, canceller: canceller) })
    }

    /// Decodes codes or features to samples, channel after channel within each frame. Without a seed, the noise of
    /// decoders that have some is zero.
    public func decode(_ encoded: EncodedAudio, seed: UInt64? = nil) async throws -> [Float] {
        let (core, canceller, encoded) = (core, CallCanceller(), encoded.core)
        let audio = try await cancellable(canceller.cancel) {
            try await core.decode(encoded: encoded, seed: seed, canceller: canceller)
        }
        return Array(packed: audio.samples)
    }

    /// Decodes codes in parts, as if they came one after the other. Together the pieces are the samples of
    /// ``decode(_:seed:)``; a piece comes as soon as no later code changes it.
    public func decode(
        parts: [EncodedAudio.Codes], seed: UInt64? = nil
    ) -> AsyncThrowingStream<[Float], any Error> {
        let core = core
        return pulled {
            core.decodeParts(parts: parts.map(\.core), seed: seed)
        } cancel: {
            $0.cancel()
        } next: { decoding in
            try await calling { try await decoding.next() }.map { Array(packed: $0.samples) }
        }
    }

    /// Frees the memory of the codec even if other references exist.
    public func unload() async throws {
        let core = core
        try await calling { try await core.unload() }
    }
}

extension EncodedAudio {
    fileprivate init(_ core: MynahCore.EncodedAudio) {
        switch core {
        case .codes(let stretches):
            self = .codes(stretches.map { Codes(codebooks: $0.codebooks, scale: $0.scale) })
        case .features(let frames): self = .features(frames)
        }
    }

    fileprivate var core: MynahCore.EncodedAudio {
        switch self {
        case .codes(let stretches): .codes(stretches: stretches.map(\.core))
        case .features(let frames): .features(frames: frames)
        }
    }
}
