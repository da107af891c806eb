import Foundation
import MynahCore

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// Brings the files of models here in place of the library, such as by a session of the system that goes on while the
/// app is suspended. It only moves bytes: the list of files, free space, hashes and the place on the disk are the
/// library's, so a file that is not what the hub announced is refused.
public protocol Downloader: Sendable {
    /// Puts a file into a local file, and returns when it is there. `progress` takes the bytes that have arrived so
    /// far, from any task; what makes no sense does no harm.
    ///
    /// Several files are asked for at once. When nobody wants the file any more, the task is cancelled and not waited
    /// for. What this throws is thrown where the model was asked for, as ``MynahError/network(_:retryAfter:)`` with its
    /// description.
    func download(
        _ request: FileRequest, to file: URL, progress: @escaping @Sendable (Int64) -> Void
    ) async throws
}

/// A file of a repository.
public struct FileRequest: Sendable, Hashable {
    /// Its address, which may redirect to another host.
    public let url: URL
    /// What the header `Authorization` shall be for the host of ``url``, and for no other.
    public let authorization: String?
    /// Its name in the repository.
    public let name: String
    /// Its size in bytes.
    public let size: Int64

    /// The first request of a session of Foundation.
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
                url: url, authorization: request.authorization, name: request.name, size: Int64(clamping: request.size))
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
