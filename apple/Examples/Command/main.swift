import Foundation
import Mynah

// swift run chat [org/name or a directory]: ^C ends an answer, ^D the chat.
func say(_ text: String, to file: FileHandle = .standardOutput) {
    file.write(Data(text.utf8))
}

do {
    let source: ModelSource = CommandLine.arguments.dropFirst().first.map { .named($0) } ?? .demo
    let model = try await Model.load(source) { event in
        if case .downloading(let progress) = event {
            say("\r\(Int(progress.fractionCompleted * 100)) % of \(progress.total) bytes", to: .standardError)
        }
    }
    let session = ChatSession(model)

    signal(SIGINT, SIG_IGN)
    let interrupts = DispatchSource.makeSignalSource(signal: SIGINT)
    interrupts.resume()

    while let line = readLine() {
        let answer = Task {
            for try await event in session.streamResponse(to: line) {
                switch event {
                case .text(let text):
                    say(text)
                case .finished(let result):
                    say("\n")
                    let rate = String(format: "%.1f", result.tokensPerSecond)
                    say("\(result.generatedTokens.count) tokens, \(rate) a second\n", to: .standardError)
                    if result.finishReason == .length {
                        say("the answer was cut: maxTokens or the context ended it\n", to: .standardError)
                    }
                default:
                    break
                }
            }
        }
        interrupts.setEventHandler { answer.cancel() }
        do {
            try await answer.value
        } catch is CancellationError {
            say("\n")
        }
    }
} catch {
    say("\(error.localizedDescription)\n", to: .standardError)
    exit(1)
}
