import Foundation
internal import MynahCore

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// The library's requests through a `URLSession`, which knows the proxies, VPNs and settings of the system. The library
/// decides what is requested, resumed and verified.
final class URLSessionClient: HttpClient {
    private let session: URLSession
    private let responses = Responses()

    init(_ configuration: URLSessionConfiguration) {
        session = URLSession(configuration: configuration, delegate: responses, delegateQueue: nil)
    }

    // A session retains its delegate until then.
    deinit { session.finishTasksAndInvalidate() }

    /// The default of Apple's systems; on others the library sends its requests itself.
    static let useByDefault: Void = {
        #if canImport(Darwin)
        use(.ephemeral)
        #endif
    }()

    static func use(_ configuration: URLSessionConfiguration?) {
        guard let configuration else { return setHttpClient(client: nil) }
        // The time without a byte. A file whose connection breaks is resumed where it stopped.
        configuration.timeoutIntervalForRequest = 20
        configuration.httpMaximumConnectionsPerHost = 8
        setHttpClient(client: URLSessionClient(configuration))
    }

    func get(request: HttpRequest) async throws -> HttpResponse {
        guard let url = URL(string: request.url) else { throw DownloaderError.Failed(reason: "an invalid address") }
        var urlRequest = URLRequest(url: url, cachePolicy: .reloadIgnoringLocalCacheData)
        for (name, value) in request.headers { urlRequest.setValue(value, forHTTPHeaderField: name) }
        let body = ResponseBody(session.dataTask(with: urlRequest))
        responses.begin(body.transfer)
        let response = try await body.transfer.response()
        var headers: [String: String] = [:]
        for (name, value) in response.allHeaderFields { headers["\(name)"] = "\(value)" }
        return HttpResponse(status: UInt16(clamping: response.statusCode), headers: headers, body: body)
    }
}

/// The body as the core holds it: the transfer ends with it.
private final class ResponseBody: HttpBody {
    let transfer: ResponseTransfer

    init(_ task: URLSessionDataTask) { transfer = ResponseTransfer(task) }
    deinit { transfer.task.cancel() }

    func read() async throws -> Data { try await transfer.read() }
}

/// One response on its way from the session to its reader, at most about ``bound`` bytes ahead of it.
private final class ResponseTransfer: Sendable {
    private static let bound = 4 << 20

    private struct State {
        var bytes = Data()
        var isPaused = false
        var response: Result<HTTPURLResponse, any Error>?
        var end: Result<Void, any Error>?
        var waitingForResponse: CheckedContinuation<HTTPURLResponse, any Error>?
        var reader: CheckedContinuation<Data, any Error>?
    }

    let task: URLSessionDataTask
    private let state = Locked(State())

    init(_ task: URLSessionDataTask) { self.task = task }

    func response() async throws -> HTTPURLResponse {
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { waiting in
                let response = state { state in
                    if state.response == nil { state.waitingForResponse = waiting }
                    return state.response
                }
                if let response { waiting.resume(with: response) }
            }
        } onCancel: {
            task.cancel()
        }
    }

    /// All bytes that have come; none at the end.
    func read() async throws -> Data {
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { reader in
                let (bytes, isPaused): (Result<Data, any Error>?, Bool) = state { state in
                    guard state.bytes.isEmpty else {
                        defer { (state.bytes, state.isPaused) = (Data(), false) }
                        return (.success(state.bytes), state.isPaused)
                    }
                    if let end = state.end { return (end.map { Data() }, false) }
                    state.reader = reader
                    return (nil, false)
                }
                if isPaused { task.resume() }
                if let bytes { reader.resume(with: bytes) }
            }
        } onCancel: {
            task.cancel()
        }
    }

    func received(_ response: Result<HTTPURLResponse, any Error>) {
        let waiting = state { state in
            state.response = state.response ?? response
            defer { state.waitingForResponse = nil }
            return state.waitingForResponse
        }
        waiting?.resume(with: response)
    }

    func received(_ bytes: Data) {
        let (reader, pauses) = state { state -> (CheckedContinuation<Data, any Error>?, Bool) in
            if let reader = state.reader {
                state.reader = nil
                return (reader, false)
            }
            state.bytes += bytes
            let pauses = state.bytes.count >= Self.bound && !state.isPaused
            state.isPaused = state.isPaused || pauses
            return (nil, pauses)
        }
        if pauses { task.suspend() }
        reader?.resume(returning: bytes)
    }

    func ended(_ end: Result<Void, any Error>) {
        received(end.flatMap { .failure(URLError(.badServerResponse)) })
        let reader = state { state in
            state.end = end
            defer { state.reader = nil }
            return state.reader
        }
        reader?.resume(with: end.map { Data() })
    }
}

/// Gives what the session receives to the transfers.
private final class Responses: NSObject, URLSessionDataDelegate, Sendable {
    private let transfers = Locked<[Int: ResponseTransfer]>([:])

    func begin(_ transfer: ResponseTransfer) {
        transfers { $0[transfer.task.taskIdentifier] = transfer }
        transfer.task.resume()
    }

    func urlSession(
        _ session: URLSession, dataTask: URLSessionDataTask, didReceive response: URLResponse,
        completionHandler: @escaping @Sendable (URLSession.ResponseDisposition) -> Void
    ) {
        let transfer = transfers { $0[dataTask.taskIdentifier] }
        transfer?.received((response as? HTTPURLResponse).map { .success($0) } ?? .failure(URLError(.badServerResponse)))
        completionHandler(.allow)
    }

    func urlSession(_ session: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        transfers { $0[dataTask.taskIdentifier] }?.received(data)
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: (any Error)?) {
        let end: Result<Void, any Error> = error.map { .failure(failure($0)) } ?? .success(())
        transfers { $0.removeValue(forKey: task.taskIdentifier) }?.ended(end)
    }

    /// The core follows redirects itself, so that the access token reaches the hub's own host only.
    func urlSession(
        _ session: URLSession, task: URLSessionTask, willPerformHTTPRedirection response: HTTPURLResponse,
        newRequest request: URLRequest, completionHandler: @escaping @Sendable (URLRequest?) -> Void
    ) {
        completionHandler(nil)
    }

    private func failure(_ error: any Error) -> DownloaderError {
        if let error = error as? URLError, error.code == .cancelled { return .Cancelled }
        return .Failed(reason: error.localizedDescription)
    }
}
