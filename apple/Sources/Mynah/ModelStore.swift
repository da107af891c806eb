import Foundation
import MynahCore

/// The models on the disk, in the layout that Python's `huggingface_hub` shares.
public enum ModelStore {
    private static let chosen = Locked<URL?>(nil)

    static var chosenDirectory: URL? { chosen { $0 } }

    /// The folder of all models. By default it is the shared cache on macOS and Linux, and inside of Application
    /// Support elsewhere; an app may choose another one, such as one of its app group.
    public static var directory: URL {
        get { chosenDirectory ?? URL(fileURLWithPath: defaultCache(), isDirectory: true) }
        set { chosen { $0 = newValue } }
    }

    /// Downloads a model, unless it is on the disk, as a sequence that ends when it is there. Cancelling the task that
    /// reads it, or to stop reading, stops the download; what has arrived stays, and the next one goes on from there.
    public static func download(
        _ locator: some ModelLocator, with downloader: (any Downloader)? = nil
    ) -> AsyncThrowingStream<DownloadProgress, any Error> {
        let source = locator.source
        let started = Locked<Downloading?>(nil)
        return AsyncThrowingStream {
            let download = try started { started in
                if let started { return started }
                let download = try calling {
                    try downloadModel(source: source.core, downloader: downloader.map(DownloaderBridge.init))
                }
                started = download
                return download
            }
            let progress = try await cancellable(download.cancel) { try await download.next() }
            return progress.map(DownloadProgress.init)
        }
    }

    /// The models of which something is there.
    public static func list() async throws -> [StoredModel] {
        try calling { try storedModels(cache: directory.path).map(StoredModel.init) }
    }

    /// Deletes a model, or one revision of it; returns how many bytes became free.
    @discardableResult
    public static func delete(_ id: String, revision: String? = nil) async throws -> Int64 {
        let freed = try calling { try deleteModel(repository: id, revision: revision, cache: directory.path) }
        return Int64(clamping: freed)
    }
}

/// A repository of which something is on the disk.
public struct StoredModel: Sendable, Hashable, Identifiable {
    /// Its name, such as `org/name`.
    public let id: String
    /// Bytes on disk, what is unfinished included.
    public let bytes: Int64
    /// Its revisions, the one that was used last first.
    public let revisions: [Revision]

    /// One revision of a repository.
    public struct Revision: Sendable, Hashable {
        /// The hash of the commit.
        public let commit: String
        /// The branches and tags that stood at it when they were fetched.
        public let names: [String]
        /// Bytes of its files; other revisions may share them.
        public let bytes: Int64
        /// When it was used last, as far as that is known.
        public let lastUsed: Date?
        /// Whether all that a model needs is there.
        public let isComplete: Bool
    }

    init(_ core: MynahCore.StoredModel) {
        id = core.repository
        bytes = Int64(clamping: core.bytes)
        revisions = core.revisions.map {
            Revision(
                commit: $0.commit, names: $0.names, bytes: Int64(clamping: $0.bytes), lastUsed: $0.lastUsed,
                isComplete: $0.complete)
        }
    }
}
