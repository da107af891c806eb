import Foundation
internal import MynahCore

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// Downloads the files of models in place of the library, for example by a background session of the system, which
/// continues while the app is suspended. It only moves bytes: the library handles the list of files, free space, hashes
/// and the layout of the cache, and refuses a file that is not what the hub announced.
public protocol Downloader: Sendable {
    /// Downloads a file to a local file and returns when it is complete. `progress` takes the number of bytes received
    /// so far, from any task.
    ///
    /// The library asks for several files at once. When a download is cancelled, it cancels the task of this call and
    /// does not wait for it. An error that this throws reaches the caller as ``MynahError/Code/network`` with its
    /// description.
    func download(
        _ request: FileRequest, to file: URL, progress: @escaping @Sendable (Int64) -> Void
    ) async throws
}

/// A file of a repository to download.
public struct FileRequest: Sendable, Hashable {
    /// The address, which may redirect to another host.
    public let url: URL
    /// The value of the header `Authorization` for the host of ``url``; other hosts must not get it.
    public let authorization: String?
    /// The repository, such as `org/name`.
    public let repository: String
    /// The commit of the snapshot.
    public let commit: String
    /// The name of the file in the repository.
    public let name: String
    /// The hash that the hub announces for the file.
    public let hash: String
    /// The size in bytes.
    public let size: Int64

    /// A request for `URLSession`.
    public var urlRequest: URLRequest {
        var request = URLRequest(url: url)
        request.setValue(authorization, forHTTPHeaderField: "Authorization")
        return request
    }
}

/// A downloader as the core calls it.
final class DownloaderBridge: MynahCore.Downloader {
    private let downloader: any Downloader

    init(_ downloader: any Downloader) { self.downloader = downloader }

    func download(request: MynahCore.FileRequest, arrived: Arrived) async throws {
        do {
            guard let url = URL(string: request.url) else { throw URLError(.badURL) }
            let file = FileRequest(
                url: url, authorization: request.authorization, repository: request.repository, commit: request.commit,
                name: request.name, hash: request.hash, size: Int64(clamping: request.size))
            try await downloader.download(file, to: URL(fileURLWithPath: request.path)) { bytes in
                arrived.report(bytes: UInt64(clamping: bytes))
            }
        } catch is CancellationError {
            throw DownloaderError.Cancelled
        } catch {
            throw DownloaderError.Failed(reason: error.localizedDescription)
        }
    }
}
