import Foundation
@testable import Mynah
import Testing

extension Everything {
    @Suite struct CompatibilityTests {
        @Test func codeOfMLXSwiftLMRuns() async throws {
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
            defer { try? FileManager.default.removeItem(at: folder) }
            await #expect(throws: MynahError.self) {
                try await LLMModelFactory.shared.loadContainer(
                    hub: HubApi(hfToken: "x", downloadBase: folder, endpoint: URL(string: "http://127.0.0.1:9")),
                    configuration: .init(id: "org/name")
                ) { progress in _ = progress.fractionCompleted }
            }
            let configuration = ModelConfiguration(directory: folder, extraEOSTokens: ["<|im_end|>", "not a token"])
            let container = try await ModelContainer(try await demo.value, configuration)
            #expect(container.configuration.name == folder.lastPathComponent)
            let messages = [["role": "user", "content": "What is 3 + 4?"]]
            let input = try await container.prepare(input: UserInput(messages: messages))
            #expect(try await container.applyChatTemplate(messages: messages) == input.tokens)
            var text = "", info: GenerateCompletionInfo?
            for try await item in try await container.generate(input: input, parameters: GenerateParameters(temperature: 0)) {
                switch item {
                case .chunk(let chunk): text += chunk
                case .info(let result): info = result
                }
            }
            #expect(text.contains("7") && info?.text == text && info?.finishReason == .stop)
            let tokens = try await container.encode("Hi")
            #expect(try await container.decode(tokens: tokens) == "Hi")
            #expect(throws: MynahError.self) { try UserInput(messages: [["role": "nobody"]]) }
        }

        @Test func codeOfFFAIRuns() async throws {
            let model = try await demo.value
            var text = "", last: GenerationChunk?
            for try await chunk in model.generateStream(messages: [.user("What is 3 + 4?")], parameters: greedy) {
                text += chunk.text
                #expect(chunk.position == (last?.position ?? -1) + 1)
                last = chunk
            }
            #expect(last?.isFinal == true && last?.stats != nil)
            #expect(try await model.decode(last?.tokens ?? []) == text)
        }

        @Test func theRegistryNamesRepositories() {
            #expect(LLMRegistry.llama3_2_3B_4bit.name == "mlx-community/Llama-3.2-3B-Instruct-4bit")
            #expect(LLMRegistry.phi3_5_4bit.extraEOSTokens == ["<|end|>"])
        }
    }
}
