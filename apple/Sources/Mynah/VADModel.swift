import Foundation
internal import MynahCore

/// A stretch of speech.
public struct VADSpeechSegment: Sendable, Hashable {
    public let startSeconds, endSeconds: TimeInterval

    fileprivate init(_ core: SpeechSegment) {
        startSeconds = core.start
        endSeconds = core.end
    }
}

/// Whether there is speech.
public struct VADOutput: Sendable, Hashable {
    /// The probability of speech in each frame.
    public let probabilities: [Float]
    /// Samples from one frame to the next.
    public let frameStrideSamples: Int
    /// Samples a second, in Hz.
    public let sampleRate: Int
    public let segments: [VADSpeechSegment]
}

/// Whether a speaker has finished.
public struct VADEndpointOutput: Sendable, Hashable {
    public let probability: Float
    /// Whether the probability is more than the threshold of the model.
    public let prediction: Bool
}

/// Who speaks when.
public struct DiarizationOutput: Sendable, Hashable {
    /// A stretch of speech of one speaker.
    public struct Segment: Sendable, Hashable {
        /// Speakers are numbered from 0 on.
        public let speaker: Int
        public let startSeconds, endSeconds: TimeInterval
    }

    /// In the order of their beginnings.
    public let segments: [Segment]
    /// The number of speakers that the model tells apart.
    public let numSpeakers: Int
    /// The probability of each speaker in each frame.
    public let probabilities: [[Float]]
    /// Samples from one frame to the next.
    public let frameStrideSamples: Int
    /// Samples a second, in Hz.
    public let sampleRate: Int
}

/// A model of voice activity, of the ends of turns, or of speakers, in memory. The last reference to it frees its weights,
/// or ``unload()`` does.
///
/// ```swift
/// let model = try await VADModel.load("org/name")
/// for segment in try await model.detect(.file(recording)).segments { print(segment.startSeconds) }
/// ```
public final class VADModel: Sendable {
    private let core: MynahCore.VadModel
    /// The `model_type` of the config.
    public let modelType: String

    private init(_ core: MynahCore.VadModel) {
        self.core = core
        modelType = core.modelType()
    }

    /// Loads a model, and downloads it first if it is not on the disk; see ``Model/load(_:options:progress:)``. Options of
    /// prompts and caches have no effect.
    public static func load(
        _ locator: some ModelLocator, options: LoadOptions = .init(),
        progress: (@Sendable (LoadEvent) throws -> Void)? = nil
    ) async throws -> VADModel {
        guard case .vad(let model) = try await loaded(.vad, locator, options, progress) else {
            throw LoadedModel.otherKind
        }
        return VADModel(model)
    }

    /// Finds the speech in a recording.
    public func detect(_ audio: Media) async throws -> VADOutput {
        guard case .speech(let probabilities, let stride, let rate, let segments) = try await heard(audio) else {
            throw otherTask("finds no speech; it tells the ends of turns or the speakers")
        }
        return VADOutput(
            probabilities: probabilities, frameStrideSamples: Int(stride), sampleRate: Int(rate),
            segments: segments.map(VADSpeechSegment.init))
    }

    /// Finds the speech in samples of one channel between -1 and 1.
    public func detect(audio: [Float], sampleRate: Int = 16_000) async throws -> VADOutput {
        try await detect(.samples(audio, sampleRate: sampleRate))
    }

    /// Tells whether the speaker has finished at the end of a recording.
    public func detectEndpoint(_ audio: Media) async throws -> VADEndpointOutput {
        guard case .turn(let probability, let hasEnded) = try await heard(audio) else {
            throw otherTask("tells no ends of turns")
        }
        return VADEndpointOutput(probability: probability, prediction: hasEnded)
    }

    /// Tells whether the speaker has finished at the end of samples of one channel between -1 and 1.
    public func detectEndpoint(audio: [Float], sampleRate: Int = 16_000) async throws -> VADEndpointOutput {
        try await detectEndpoint(.samples(audio, sampleRate: sampleRate))
    }

    /// Tells the speakers of a recording apart.
    public func diarize(_ audio: Media) async throws -> DiarizationOutput {
        guard case .speakers(let probabilities, let stride, let rate, let speakers) = try await heard(audio) else {
            throw otherTask("tells no speakers apart")
        }
        let segments = speakers.enumerated().flatMap { speaker, segments in
            segments.map {
                DiarizationOutput.Segment(speaker: speaker, startSeconds: $0.start, endSeconds: $0.end)
            }
        }
        return DiarizationOutput(
            segments: segments.sorted { ($0.startSeconds, $0.speaker) < ($1.startSeconds, $1.speaker) },
            numSpeakers: speakers.count, probabilities: probabilities, frameStrideSamples: Int(stride),
            sampleRate: Int(rate))
    }

    /// Tells the speakers apart in samples of one channel between -1 and 1.
    public func diarize(audio: [Float], sampleRate: Int = 16_000) async throws -> DiarizationOutput {
        try await diarize(.samples(audio, sampleRate: sampleRate))
    }

    /// Frees the memory of the model even if other references exist.
    public func unload() async throws {
        let core = core
        try await calling { try await core.unload() }
    }

    private func heard(_ audio: Media) async throws -> Detection {
        let (core, canceller, audio) = (core, CallCanceller(), try audio.recording())
        return try await cancellable(canceller.cancel) { try await core.detect(audio: audio, canceller: canceller) }
    }

    private func otherTask(_ reason: String) -> MynahError {
        MynahError(.unsupported, "a model of type \(modelType) \(reason)")
    }
}
