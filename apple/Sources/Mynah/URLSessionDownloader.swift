import Foundation

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// Brings the files of models here by a session of Foundation. With a background session the system goes on while the
/// app is suspended, or after it has been ended: a file that comes while nobody waits for it is found when it is asked
/// for again.
public final class URLSessionDownloader: Downloader {
    private let session: URLSession
    private let delegate = Transfers()
    /// Asks where a file is, which a background session cannot do without sending the token there.
    private let scout = URLSession(configuration: .ephemeral, delegate: NoRedirects(), delegateQueue: nil)

    public init(configuration: URLSessionConfiguration = .default) {
        session = URLSession(configuration: configuration, delegate: delegate, delegateQueue: nil)
    }

    deinit {
        // A session keeps its delegate until then.
        session.finishTasksAndInvalidate()
        scout.finishTasksAndInvalidate()
    }

    #if canImport(Darwin)
    /// A background session. There must be one of an identifier at a time, and the same one in the next launch of the
    /// app finds what came meanwhile.
    public static func background(identifier: String = "mynah") -> URLSessionDownloader {
        URLSessionDownloader(configuration: .background(withIdentifier: identifier))
    }

    /// To be called with what `application(_:handleEventsForBackgroundURLSession:completionHandler:)` gets.
    public func handleEvents(completionHandler: @escaping @Sendable () -> Void) {
        delegate.eventsHandled { $0 = completionHandler }
    }
    #endif

    public func download(
        _ request: FileRequest, to file: URL, progress: @escaping @Sendable (Int64) -> Void
    ) async throws {
        let arrived = Transfers.place(file.path)
        if !FileManager.default.fileExists(atPath: arrived.path) {
            try await transfer(request, file, progress)
        }
        if FileManager.default.fileExists(atPath: file.path) { try FileManager.default.removeItem(at: file) }
        try FileManager.default.moveItem(at: arrived, to: file)
    }

    private func transfer(
        _ request: FileRequest, _ file: URL, _ progress: @escaping @Sendable (Int64) -> Void
    ) async throws {
        let task: URLSessionDownloadTask
        if let running = await runningTask(file) {
            task = running
        } else {
            task = session.downloadTask(with: try await resolved(request.urlRequest))
            task.taskDescription = file.path
        }
        try await delegate.end(of: task, progress)
    }

    /// The task that an earlier launch of the app left to the system.
    private func runningTask(_ file: URL) async -> URLSessionDownloadTask? {
        await withCheckedContinuation { found in
            session.getAllTasks { tasks in
                let task = tasks.first { $0.taskDescription == file.path && $0.state == .running }
                found.resume(returning: task as? URLSessionDownloadTask)
            }
        }
    }

    /// The request after all redirects, without the token once it leaves its host.
    private func resolved(_ request: URLRequest) async throws -> URLRequest {
        var request = request
        // What is compressed on the way would have another size than the file.
        request.setValue("identity", forHTTPHeaderField: "Accept-Encoding")
        for _ in 0..<8 {
            var question = request
            question.httpMethod = "HEAD"
            let (_, answer) = try await scout.data(for: question)
            guard let answer = answer as? HTTPURLResponse, (300..<400).contains(answer.statusCode),
                let location = answer.value(forHTTPHeaderField: "Location"),
                let next = URL(string: location, relativeTo: request.url)?.absoluteURL
            else { return request }
            let here = request.url
            request.url = next
            if (here?.scheme, here?.host, here?.port) != (next.scheme, next.host, next.port) {
                request.setValue(nil, forHTTPHeaderField: "Authorization")
            }
        }
        throw URLError(.httpTooManyRedirects)
    }
}

/// The transfers of a session. One that an earlier launch of the app began may end before somebody waits for it.
final class Transfers: NSObject, URLSessionDownloadDelegate, Sendable {
    private struct Transfer {
        var progress: (@Sendable (Int64) -> Void)?
        var waiting: CheckedContinuation<Void, any Error>?
        /// What became of its file.
        var arrival: Result<Void, any Error>?
        /// How it ended, as long as nobody has waited for that.
        var end: Result<Void, any Error>?
    }

    private let transfers = Locked<[Int: Transfer]>([:])
    let eventsHandled = Locked<(@Sendable () -> Void)?>(nil)

    /// Where a whole file waits for whoever wants it at `path`.
    static func place(_ path: String) -> URL { URL(fileURLWithPath: path + ".whole") }

    /// Starts a task, unless it runs, and waits until it has ended.
    func end(of task: URLSessionDownloadTask, _ progress: @escaping @Sendable (Int64) -> Void) async throws {
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { waiting in
                let end = transfers { transfers in
                    let known = transfers.removeValue(forKey: task.taskIdentifier)
                    if known?.end == nil {
                        transfers[task.taskIdentifier] = Transfer(
                            progress: progress, waiting: waiting, arrival: known?.arrival)
                    }
                    return known?.end
                }
                if let end { waiting.resume(with: end) } else { task.resume() }
            }
        } onCancel: {
            task.cancel()
        }
    }

    func urlSession(
        _ session: URLSession, downloadTask: URLSessionDownloadTask, didWriteData bytesWritten: Int64,
        totalBytesWritten: Int64, totalBytesExpectedToWrite: Int64
    ) {
        transfers { $0[downloadTask.taskIdentifier]?.progress }?(totalBytesWritten)
    }

    func urlSession(
        _ session: URLSession, downloadTask: URLSessionDownloadTask, didFinishDownloadingTo location: URL
    ) {
        guard let path = downloadTask.taskDescription else { return }
        let arrival = Result {
            let status = (downloadTask.response as? HTTPURLResponse)?.statusCode ?? 0
            guard (200..<300).contains(status) else { throw Refusal(status: status) }
            let place = Self.place(path)
            try? FileManager.default.removeItem(at: place)
            try FileManager.default.moveItem(at: location, to: place)
        }
        transfers { $0[downloadTask.taskIdentifier, default: Transfer()].arrival = arrival }
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: (any Error)?) {
        let (waiting, end) = transfers { transfers in
            var transfer = transfers.removeValue(forKey: task.taskIdentifier) ?? Transfer()
            let end: Result<Void, any Error> =
                switch error {
                case let error as URLError where error.code == .cancelled: .failure(CancellationError())
                case let error?: .failure(error)
                case nil: transfer.arrival ?? .failure(URLError(.badServerResponse))
                }
            if transfer.waiting == nil {
                transfer.end = end
                transfers[task.taskIdentifier] = transfer
            }
            return (transfer.waiting, end)
        }
        waiting?.resume(with: end)
    }

    #if canImport(Darwin)
    func urlSessionDidFinishEvents(forBackgroundURLSession session: URLSession) {
        let handled = eventsHandled { handled in
            defer { handled = nil }
            return handled
        }
        // UIKit wants to hear of it on the main thread.
        if let handled { DispatchQueue.main.async { handled() } }
    }
    #endif
}

private struct Refusal: LocalizedError {
    let status: Int

    var errorDescription: String? { "the server answers with status \(status)" }
}

private final class NoRedirects: NSObject, URLSessionTaskDelegate, Sendable {
    func urlSession(
        _ session: URLSession, task: URLSessionTask, willPerformHTTPRedirection response: HTTPURLResponse,
        newRequest request: URLRequest, completionHandler: @escaping @Sendable (URLRequest?) -> Void
    ) {
        completionHandler(nil)
    }
}
