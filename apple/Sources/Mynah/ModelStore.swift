import Foundation
internal import MynahCore

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// The models on the disk, in the cache layout of Python's `huggingface_hub`.
public enum ModelStore {
    private static let chosen = Locked<URL?>(nil)

    static var chosenDirectory: URL? { chosen { $0 } }

    /// The folder of all models: by default the shared hub cache on macOS and Linux, and a folder in Application Support
    /// elsewhere. An app may choose another one, such as one in its app group.
    public static var directory: URL {
        get { chosenDirectory ?? URL(fileURLWithPath: defaultCache(), isDirectory: true) }
        set { chosen { $0 = newValue } }
    }

    /// Sends the library's requests with sessions of this configuration from now on, for example one whose
    /// `allowsConstrainedNetworkAccess` is `false`, which respects Low Data Mode. `nil` has the library open its own
    /// connections, as it does on Linux. Apple's systems use `.ephemeral` by default, with the proxies and VPNs of the
    /// system.
    public static func use(_ configuration: URLSessionConfiguration?) {
        URLSessionClient.useByDefault
        URLSessionClient.use(configuration)
    }

    /// Downloads a model, unless it is on the disk, as a sequence that ends when it is complete. Cancelling the task or
    /// ending the loop stops the download and keeps its bytes; the next download resumes.
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

    /// The models of which files are on the disk.
    public static func list() async throws -> [StoredModel] {
        try calling { try storedModels(cache: directory.path).map(StoredModel.init) }
    }

    /// Deletes a model or one of its revisions, and returns the number of freed bytes.
    @discardableResult
    public static func delete(_ id: String, revision: String? = nil) async throws -> Int64 {
        let freed = try calling { try deleteModel(repository: id, revision: revision, cache: directory.path) }
        return Int64(clamping: freed)
    }
}

/// A repository of which files are on the disk.
public struct StoredModel: Sendable, Hashable, Identifiable {
    /// The name, such as `org/name`.
    public let id: String
    /// Bytes on the disk, partial downloads included.
    public let bytes: Int64
    /// The revisions, the most recently used first.
    public let revisions: [Revision]

    /// One revision of a repository.
    public struct Revision: Sendable, Hashable {
        /// The hash of the commit.
        public let commit: String
        /// The branches and tags that pointed at the commit when it was downloaded.
        public let names: [String]
        /// Bytes of the files; other revisions may share them.
        public let bytes: Int64
        /// The time of the last use, if known.
        public let lastUsed: Date?
        /// Whether all files that a model needs are on the disk.
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
