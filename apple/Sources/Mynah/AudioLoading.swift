import Foundation
internal import MynahCore

/// Loads a model of a kind, and downloads it first if it is not on the disk.
func loaded(
    _ kind: ModelKind, _ locator: some ModelLocator, _ options: LoadOptions,
    _ progress: (@Sendable (LoadEvent) throws -> Void)?
) async throws -> LoadedModel {
    await AppLifecycle.observe()
    let sequence = LoadSequence(source: locator.source, options: options)
    // The weights are in memory when a load is over, so the access lasts as long as the load.
    let access = sequence.access
    defer { withExtendedLifetime(access) {} }
    let loading = try sequence.begin(kind)
    while let event = try await cancellable(loading.cancel, { try await loading.next() }) {
        switch event {
        case .downloading(let state): try progress?(.downloading(DownloadProgress(state)))
        case .loading(let fraction): try progress?(.loading(fraction))
        }
    }
    return try await cancellable(loading.cancel) { try await loading.model() }
}

extension LoadedModel {
    /// The error of a model that the core loaded as another kind than it was asked for.
    static var otherKind: MynahError { MynahError(.internal, "the core loaded a model of another kind") }
}

extension Array where Element == Float {
    /// Samples as they cross: 32-bit floats, little endian, which all systems of this package are.
    var packed: Data { withUnsafeBytes { Data($0) } }

    init(packed data: Data) {
        self = Array(unsafeUninitializedCapacity: data.count / 4) { floats, count in
            count = data.count / 4
            data.copyBytes(to: UnsafeMutableRawBufferPointer(floats), count: 4 * count)
        }
    }
}

extension Media {
    /// The recording in the core.
    func recording() throws -> AudioInput {
        switch source {
        case .file(let url): .file(path: url.path)
        case .samples(let samples, let rate, let channels):
            .samples(
                audio: Audio(
                    samples: samples.packed, channels: try size(channels, "channels"),
                    sampleRate: try size(rate, "sampleRate")))
        case .data:
            throw MynahError(.invalidRequest, "write the recording to a file, which is read as it is heard")
        case .pixels, .frames: throw MynahError(.invalidRequest, "a picture or a clip is no recording")
        }
    }
}

/// A stream of what `next` waits for, whose errors are its own. `cancel` runs when the reading task is cancelled.
func pulled<Source: Sendable, Element: Sendable>(
    _ begin: @escaping @Sendable () async throws -> Source, cancel: @escaping @Sendable (Source) -> Void,
    next: @escaping @Sendable (Source) async throws -> Element?
) -> AsyncThrowingStream<Element, any Error> {
    let source = Locked<Source?>(nil)
    return AsyncThrowingStream {
        let current: Source
        if let begun = source({ $0 }) {
            current = begun
        } else {
            current = try await begin()
            source { $0 = current }
        }
        try Task.checkCancellation()
        return try await withTaskCancellationHandler { try await next(current) } onCancel: { cancel(current) }
    }
}
