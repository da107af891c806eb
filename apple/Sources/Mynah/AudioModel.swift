import Foundation
internal import MynahCore

/// A model of speech to text in memory. The last reference to it and to its streams frees its weights, or ``unload()``
/// does.
///
/// ```swift
/// let model = try await AudioModel.load("org/name")
/// let transcription = try await model.transcribe(.file(recording))
/// print(transcription.text)
/// ```
public final class AudioModel: Sendable {
    private let core: MynahCore.AudioModel
    /// The `model_type` of the config.
    public let modelType: String
    /// Samples a second that the model hears, in Hz. Audio at other rates is resampled.
    public let sampleRate: Int

    private init(_ core: MynahCore.AudioModel) {
        self.core = core
        modelType = core.modelType()
        sampleRate = Int(core.sampleRate())
    }

    /// Loads a model, and downloads it first if it is not on the disk; see ``Model/load(_:options:progress:)``. Options of
    /// prompts and caches have no effect.
    public static func load(
        _ locator: some ModelLocator, options: LoadOptions = .init(),
        progress: (@Sendable (LoadEvent) throws -> Void)? = nil
    ) async throws -> AudioModel {
        guard case .audio(let model) = try await loaded(.audio, locator, options, progress) else {
            throw LoadedModel.otherKind
        }
        return AudioModel(model)
    }

    /// Writes down what is said, and waits for the whole transcription. Cancelling the task stops the computation.
    public func transcribe(_ audio: Media, options: TranscriptionOptions = .init()) async throws -> Transcription {
        for try await update in transcribing(audio, options: options) {
            if case .finished(let transcription) = update { return transcription }
        }
        throw CancellationError()
    }

    /// Writes down what is said, as a sequence of updates that ends with ``TranscriptionUpdate/finished(_:)``. A file is
    /// read as it is transcribed, so its length is not limited. Ending the loop stops the computation.
    public func transcribing(
        _ audio: Media, options: TranscriptionOptions = .init()
    ) -> AsyncThrowingStream<TranscriptionUpdate, any Error> {
        let core = core
        return pulled {
            // Samples are resampled here.
            try await onThread { try calling { try core.transcribe(audio: audio.recording(), options: options.core()) } }
        } cancel: {
            $0.cancel()
        } next: { running in
            try await calling { try await running.next() }.map(TranscriptionUpdate.init)
        }
    }

    /// Finds when the words of a text are said, in a language by its code or English name; English without one.
    /// Punctuation belongs to no word, and in Chinese each character is one. The model is a forced aligner. Cancelling the
    /// task stops the computation.
    public func align(_ audio: Media, text: String, language: String? = nil) async throws -> [AlignedWord] {
        let (core, canceller, audio) = (core, CallCanceller(), try audio.recording())
        let words = try await cancellable(canceller.cancel) {
            try await core.align(audio: audio, text: text, language: language, canceller: canceller)
        }
        return words.map { AlignedWord(word: $0.word, start: $0.start, end: $0.end) }
    }

    /// Writes down what is said in audio that is still coming, at `sampleRate` Hz in one channel. Partial text comes once a
    /// second of audio; a segment is final when another one has followed it, at most 30 seconds later. The transcription
    /// ends after the audio; an error of the audio ends it too.
    ///
    /// ```swift
    /// for try await update in model.transcribe(live: microphone, sampleRate: 48_000) {
    ///     switch update {
    ///     case .segments(let segments, _): final += segments
    ///     case .partial(let text, _): partial = text
    ///     default: break
    ///     }
    /// }
    /// ```
    public func transcribe<Live: AsyncSequence & Sendable>(
        live: Live, sampleRate: Int, options: TranscriptionOptions = .init()
    ) -> AsyncThrowingStream<TranscriptionUpdate, any Error> where Live.Element == [Float] {
        let core = core
        return pulled {
            try calling { try LiveSource(core, live, sampleRate, options) }
        } cancel: {
            $0.cancel()
        } next: {
            try await $0.next()
        }
    }

    /// Frees the memory of the model even if other references exist. Running transcriptions end with the error
    /// ``MynahError/Code/unloaded``, and later calls throw it.
    public func unload() async throws {
        let core = core
        try await calling { try await core.unload() }
    }
}

/// Reads live audio while its transcription is read.
private final class LiveSource: Sendable {
    private let core: LiveTranscription
    private let reading: Task<Void, Never>
    private let failure: Locked<(any Error)?>

    init<Live: AsyncSequence & Sendable>(
        _ model: MynahCore.AudioModel, _ live: Live, _ sampleRate: Int, _ options: TranscriptionOptions
    ) throws where Live.Element == [Float] {
        let core = try model.transcribeLive(sampleRate: size(sampleRate, "sampleRate"), options: options.core())
        let failure = Locked<(any Error)?>(nil)
        self.core = core
        self.failure = failure
        reading = Task {
            do {
                for try await samples in live { try calling { try core.audio.push(samples: samples.packed) } }
            } catch {
                failure { $0 = error }
                core.transcription.cancel()
            }
            core.audio.finish()
        }
    }

    deinit { cancel() }

    func cancel() {
        reading.cancel()
        core.transcription.cancel()
    }

    func next() async throws -> TranscriptionUpdate? {
        do {
            let core = core
            if let event = try await calling({ try await core.transcription.next() }) { return TranscriptionUpdate(event) }
        } catch {
            throw failure { $0 } ?? error
        }
        if let failure = failure({ $0 }) { throw failure }
        return nil
    }
}

/// Options of a transcription. The defaults are those of OpenAI's code; a model that has no use for an option ignores it.
public struct TranscriptionOptions: Sendable, Hashable {
    /// What is written.
    public enum Task: Sendable, Hashable {
        /// What is said, in its language.
        case transcribe
        /// What is said, in English.
        case translate
    }

    /// Which times the segments have.
    public enum Timestamps: Sendable, Hashable {
        /// None: one segment for each window of the model.
        case none
        /// The beginning and the end of each segment.
        case segments
        /// Those of each word, too.
        case words
    }

    /// The language that is spoken, such as `en`; detected when `nil`.
    public var language: String?
    public var task: Task
    public var timestamps: Timestamps
    /// Text that comes before the recording: names and spellings that the model then prefers.
    public var prompt: String?
    /// Sampling temperatures, one after the other until a window passes the thresholds; 0 is greedy decoding.
    public var temperatures: [Float]
    /// A window is too repetitive when its text is this much longer than its compression.
    public var compressionRatioThreshold: Float?
    /// A window is a failure when the mean log-probability of its tokens is below this.
    public var logprobThreshold: Float?
    /// A failure is silence when the probability of no speech is above this.
    public var noSpeechThreshold: Float?
    /// Whether the text of a window is the prompt of the next one.
    public var conditionOnPreviousText: Bool
    /// With times of words: text that follows this many seconds of silence and looks invented is dropped.
    public var hallucinationSilenceThreshold: Float?
    /// Whether numbers are written as digits, with punctuation, where the model has the choice.
    public var inverseTextNormalization: Bool
    /// The most tokens of a recording or of a window; the model's limit when `nil`.
    public var maxTokens: Int?
    /// The seed of sampling at a temperature above 0.
    public var seed: UInt64

    public init(language: String? = nil, task: Task = .transcribe, timestamps: Timestamps = .segments) {
        let usual = defaultTranscribeOptions()
        self.language = language
        self.task = task
        self.timestamps = timestamps
        prompt = usual.prompt
        temperatures = usual.temperatures
        compressionRatioThreshold = usual.compressionRatioThreshold
        logprobThreshold = usual.logprobThreshold
        noSpeechThreshold = usual.noSpeechThreshold
        conditionOnPreviousText = usual.conditionOnPreviousText
        hallucinationSilenceThreshold = usual.hallucinationSilenceThreshold
        inverseTextNormalization = usual.inverseTextNormalization
        maxTokens = usual.maxTokens.map(Int.init)
        seed = usual.seed
    }

    fileprivate func core() throws -> TranscribeOptions {
        TranscribeOptions(
            language: language, translate: task == .translate, timestamps: timestamps.core, prompt: prompt,
            temperatures: temperatures, compressionRatioThreshold: compressionRatioThreshold,
            logprobThreshold: logprobThreshold, noSpeechThreshold: noSpeechThreshold,
            conditionOnPreviousText: conditionOnPreviousText,
            hallucinationSilenceThreshold: hallucinationSilenceThreshold,
            inverseTextNormalization: inverseTextNormalization,
            maxTokens: try maxTokens.map { try size($0, "maxTokens") }, seed: seed)
    }
}

extension TranscriptionOptions.Timestamps {
    fileprivate var core: MynahCore.Timestamps {
        switch self {
        case .none: .none
        case .segments: .segments
        case .words: .words
        }
    }
}

/// An update of a transcription. Later versions add cases: a `switch` needs a `default`.
#if hasAttribute(nonexhaustive)
@nonexhaustive
#endif
public enum TranscriptionUpdate: Sendable, Hashable {
    /// The next segments, which are final, and the fraction of the recording that is transcribed.
    case segments([Transcription.Segment], fraction: Double)
    /// The text after the final segments of live audio, and where it begins, in seconds; it may change.
    case partial(String, start: TimeInterval)
    /// The last update.
    case finished(Transcription)

    fileprivate init(_ core: TranscriptionEvent) {
        switch core {
        case .segments(let segments, let share):
            self = .segments(segments.map(Transcription.Segment.init), fraction: Double(share))
        case .partial(let text, let start): self = .partial(text, start: start)
        case .finished(let transcript): self = .finished(Transcription(transcript))
        }
    }
}

/// The text of a recording.
public struct Transcription: Sendable, Hashable {
    public let text: String
    /// The code of its language, such as `en`, where the model knows it.
    public let language: String?
    public let segments: [Segment]
    /// The tokens of the text, with those that stand for times, and their log-probabilities where a decoder wrote them.
    public let tokens: [Int]
    public let logprobs: [Float]
    /// The emotion and the kind of sound that the model hears, where it tells.
    public let emotion, event: String?

    /// A part of a recording, usually a sentence. Times are in seconds.
    public struct Segment: Sendable, Hashable {
        public let start, end: TimeInterval
        public let text: String
        /// Its words, if ``TranscriptionOptions/timestamps-swift.property`` asks for them.
        public let words: [Word]
        public let tokens: [Int]
        /// Of its window: the mean log-probability of the tokens, how much longer the text is than its compression, the
        /// probability of no speech, and the temperature.
        public let averageLogprob, compressionRatio, noSpeechProbability, temperature: Float
    }

    /// A word with its times in seconds.
    public struct Word: Sendable, Hashable {
        /// Its text, with the space before it and the punctuation around it.
        public let word: String
        public let start, end: TimeInterval
        /// The mean probability of its tokens.
        public let probability: Float
    }
}

extension Transcription {
    fileprivate init(_ core: MynahCore.Transcript) {
        text = core.text
        language = core.language
        segments = core.segments.map(Segment.init)
        tokens = core.tokens.map(Int.init)
        logprobs = core.logprobs
        emotion = core.emotion
        event = core.event
    }
}

extension Transcription.Segment {
    fileprivate init(_ core: MynahCore.Segment) {
        start = core.start
        end = core.end
        text = core.text
        words = core.words.map {
            Transcription.Word(word: $0.word, start: $0.start, end: $0.end, probability: $0.probability)
        }
        tokens = core.tokens.map(Int.init)
        averageLogprob = core.avgLogprob
        compressionRatio = core.compressionRatio
        noSpeechProbability = core.noSpeechProbability
        temperature = core.temperature
    }
}

/// A word of a given text with its place in a recording.
public struct AlignedWord: Sendable, Hashable {
    /// The word, without punctuation.
    public let word: String
    /// In seconds.
    public let start, end: TimeInterval
}
