import Foundation
import Mynah
import Observation

/// The state of the screens and the actions of their buttons. It does not use SwiftUI, so tests run on every system.
@MainActor
@Observable
final class Conversation {
    enum Phase: Equatable {
        case choosing
        case downloading(DownloadProgress)
        case loading(Double)
        case chatting
    }

    private(set) var phase = Phase.choosing
    private(set) var isAnswering = false
    private(set) var lastResult: GenerationResult?
    var problem: String?

    private var session: ChatSession?
    /// The text of the running answer so far.
    private var answer = ""
    @ObservationIgnored private(set) var work: Task<Void, Never>?

    /// The transcript, with the running answer.
    var messages: [ChatMessage] {
        guard let session else { return [] }
        return session.transcript + (session.isResponding ? [.assistant(answer)] : [])
    }

    func open(_ model: some ModelLocator) {
        run { [self] in
            defer { if session == nil { phase = .choosing } }
            for try await event in Model.loading(model) {
                if case .downloading(let progress) = event { phase = .downloading(progress) }
                if case .loading(let fraction) = event { phase = .loading(fraction) }
                if case .ready(let model) = event {
                    session = ChatSession(model)
                    phase = .chatting
                }
            }
        }
    }

    /// Asks about pictures, which are the bytes of files.
    func send(_ text: String, pictures: [Data] = []) {
        guard let session, !isAnswering else { return }
        isAnswering = true
        answer = ""
        run { [self] in
            defer { isAnswering = false }
            let message = ChatMessage.user(text, images: pictures.map(Media.data))
            for try await event in session.streamResponse(to: [message]) {
                switch event {
                case .text(let text): answer += text
                case .finished(let result): lastResult = result
                default: break
                }
            }
        }
    }

    /// Cancels the download, or the answer after its current token.
    func stop() {
        work?.cancel()
    }

    /// Frees the model.
    func close() async {
        stop()
        await work?.value
        session = nil
        lastResult = nil
        phase = .choosing
    }

    private func run(_ operation: @escaping @MainActor () async throws -> Void) {
        problem = nil
        work = Task {
            do {
                try await operation()
            } catch is CancellationError {
            } catch {
                problem = error.localizedDescription
            }
        }
    }
}
