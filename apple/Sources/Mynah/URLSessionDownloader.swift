import Foundation

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// Downloads the files of models with a `URLSession`. A background session continues while the app is suspended, and
/// after the system has ended it: the next launch finds the files that came meanwhile. On Apple's systems an interrupted
/// transfer resumes where it stopped.
public final class URLSessionDownloader: Downloader {
    private let session: URLSession
    private let transfers: Transfers
    /// Resolves redirects, because a background session would send the access token to the next host.
    private let resolver = URLSession(configuration: .ephemeral, delegate: NoRedirects(), delegateQueue: nil)

    /// `directory` holds complete files and resume data until the library asks for them; by default a folder in
    /// Application Support.
    public init(configuration: URLSessionConfiguration = .default, directory: URL? = nil) {
        transfers = Transfers(directory: directory ?? Transfers.defaultDirectory)
        session = URLSession(configuration: configuration, delegate: transfers, delegateQueue: nil)
    }

    deinit {
        // A session retains its delegate until then.
        session.finishTasksAndInvalidate()
        resolver.finishTasksAndInvalidate()
    }

    #if canImport(Darwin)
    /// A downloader with a background session. An identifier must have one session at a time; the session of the same
    /// identifier in the next launch of the app finds the files that came meanwhile.
    public static func background(identifier: String = "mynah") -> URLSessionDownloader {
        URLSessionDownloader(configuration: .background(withIdentifier: identifier))
    }

    /// Call this from `application(_:handleEventsForBackgroundURLSession:completionHandler:)`.
    public func handleEvents(completionHandler: @escaping @Sendable () -> Void) {
        transfers.eventsHandled { $0 = completionHandler }
    }
    #endif

    public func download(
        _ request: FileRequest, to file: URL, progress: @escaping @Sendable (Int64) -> Void
    ) async throws {
        let complete = transfers.file(request.transferKey, .complete)
        if !FileManager.default.fileExists(atPath: complete.path) {
            try await transfer(request, progress)
        }
        if FileManager.default.fileExists(atPath: file.path) { try FileManager.default.removeItem(at: file) }
        try FileManager.default.moveItem(at: complete, to: file)
    }

    private func transfer(_ request: FileRequest, _ progress: @escaping @Sendable (Int64) -> Void) async throws {
        let key = request.transferKey
        if let running = await runningTask(key) {
            return try await transfers.end(of: running, progress)
        }
        #if canImport(Darwin)
        if let data = transfers.takeResumeData(key) {
            do {
                return try await transfers.end(of: describe(session.downloadTask(withResumeData: data), key), progress)
            } catch is CancellationError {
                throw CancellationError()
            } catch {
                // Without new resume data the old one was useless, for example because its address has expired.
                if transfers.hasResumeData(key) { throw error }
            }
        }
        #endif
        let task = session.downloadTask(with: try await resolved(request.urlRequest))
        try await transfers.end(of: describe(task, key), progress)
    }

    private func describe(_ task: URLSessionDownloadTask, _ key: String) -> URLSessionDownloadTask {
        task.taskDescription = key
        return task
    }

    /// The task that an earlier launch of the app has started.
    private func runningTask(_ key: String) async -> URLSessionDownloadTask? {
        await withCheckedContinuation { found in
            session.getAllTasks { tasks in
                let task = tasks.first { $0.taskDescription == key && $0.state == .running }
                found.resume(returning: task as? URLSessionDownloadTask)
            }
        }
    }

    /// The request after all redirects, without the access token once it leaves its host.
    private func resolved(_ request: URLRequest) async throws -> URLRequest {
        var request = request
        // A compressed transfer would have another size than the file.
        request.setValue("identity", forHTTPHeaderField: "Accept-Encoding")
        for _ in 0..<8 {
            var question = request
            question.httpMethod = "HEAD"
            let (_, answer) = try await resolver.data(for: question)
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

extension FileRequest {
    /// Identifies the file across launches and updates of the app, which change absolute paths.
    var transferKey: String { "\(repository)/\(commit)/\(hash)" }
}

/// The transfers of a session, by the description of their tasks. A transfer of an earlier launch of the app may end
/// before the library asks for its file.
final class Transfers: NSObject, URLSessionDownloadDelegate, Sendable {
    private struct Transfer {
        var progress: (@Sendable (Int64) -> Void)?
        var waiting: CheckedContinuation<Void, any Error>?
        /// The outcome for its file.
        var arrival: Result<Void, any Error>?
        /// How the task ended, until the library asks for it.
        var end: Result<Void, any Error>?
    }

    enum Kind: String {
        case complete, resume
    }

    /// `NSURLSessionDownloadTaskResumeData`, which Foundation on Linux does not declare.
    static let resumeDataKey = "NSURLSessionDownloadTaskResumeData"

    private let transfers = Locked<[Int: Transfer]>([:])
    private let directory: URL
    let eventsHandled = Locked<(@Sendable () -> Void)?>(nil)

    init(directory: URL) {
        self.directory = directory
        super.init()
    }

    static var defaultDirectory: URL {
        let support = FileManager.default.urls(for: .applicationSupportDirectory, in: .userDomainMask).first
        return (support ?? FileManager.default.temporaryDirectory).appendingPathComponent("Mynah/Transfers")
    }

    /// The complete file or the resume data of a task.
    func file(_ key: String, _ kind: Kind) -> URL {
        let name = key.replacingOccurrences(of: "/", with: "--")
        return directory.appendingPathComponent(name).appendingPathExtension(kind.rawValue)
    }

    func hasResumeData(_ key: String) -> Bool { FileManager.default.fileExists(atPath: file(key, .resume).path) }

    /// Reads and removes the resume data of a task.
    func takeResumeData(_ key: String) -> Data? {
        let file = file(key, .resume)
        defer { try? FileManager.default.removeItem(at: file) }
        return try? Data(contentsOf: file)
    }

    private func keep(resumeData: Data?, of task: URLSessionTask) {
        guard let resumeData, let key = task.taskDescription, (try? createDirectory()) != nil else { return }
        try? resumeData.write(to: file(key, .resume), options: .atomic)
    }

    private func createDirectory() throws {
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        #if canImport(Darwin)
        var (excluded, values) = (directory, URLResourceValues())
        values.isExcludedFromBackup = true
        try excluded.setResourceValues(values)
        #endif
    }

    /// Starts a task, unless it runs, and waits for its end.
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
            task.cancel { self.keep(resumeData: $0, of: task) }
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
        guard let key = downloadTask.taskDescription else { return }
        let arrival = Result {
            let status = (downloadTask.response as? HTTPURLResponse)?.statusCode ?? 0
            guard (200..<300).contains(status) else { throw Refusal(status: status) }
            try createDirectory()
            let complete = file(key, .complete)
            try? FileManager.default.removeItem(at: complete)
            try FileManager.default.moveItem(at: location, to: complete)
            try? FileManager.default.removeItem(at: file(key, .resume))
        }
        transfers { $0[downloadTask.taskIdentifier, default: Transfer()].arrival = arrival }
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: (any Error)?) {
        // The library may ask again as soon as it learns of the end.
        let userInfo = (error as NSError?)?.userInfo
        keep(resumeData: userInfo?[Self.resumeDataKey] as? Data, of: task)
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
        // UIKit expects this call on the main thread.
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
