import Mynah
import Observation

/// What the screens show and what their buttons do. It knows nothing of SwiftUI, so tests run it anywhere.
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
    /// As far as it has come.
    private var answer = ""
    @ObservationIgnored private(set) var work: Task<Void, Never>?

    /// What was said, with the answer that is being given.
    var messages: [ChatMessage] {
        guard let session else { return [] }
        return session.transcript + (session.isResponding ? [.assistant(answer)] : [])
    }

    func open(_ model: some ModelLocator) {
        run { [self] in
            defer { if session == nil { phase = .choosing } }
            for try await event in Model.loading(model) {
                switch event {
                case .downloading(let progress): phase = .downloading(progress)
                case .loading(let share): phase = .loading(share)
                case .ready(let model):
                    session = ChatSession(model)
                    phase = .chatting
                }
            }
        }
    }

    func send(_ text: String) {
        guard let session, !isAnswering else { return }
        isAnswering = true
        answer = ""
        run { [self] in
            defer { isAnswering = false }
            for try await event in session.streamResponse(to: text) {
                switch event {
                case .text(let text): answer += text
                case .finished(let result): lastResult = result
                default: break
                }
            }
        }
    }

    /// Ends what is going on: the download, or the answer after its current token.
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
