import Foundation
@testable import Mynah
@testable import MynahCompatibility
import Testing

// Each test calls like the documentation of the other library, with the demo model.
extension Everything {
    @Suite struct CompatibilityTests {
        private func container(ends: Set<String> = []) async throws -> ModelContainer {
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent("demo")
            return ModelContainer(try await demo.value, ModelConfiguration(directory: folder, extraEOSTokens: ends))
        }

        @Test func aContainerIsLoaded() async throws {
            let hub = try Hub()
            let shares = Locked<[Double]>([])
            let container = try await LLMModelFactory.shared.loadContainer(
                hub: HubApi(hfToken: "x", downloadBase: hub.cache, endpoint: hub.endpoint),
                configuration: .init(id: "org/demo", tokenizerId: "org/demo", extraEOSTokens: ["<|im_end|>"])
            ) { progress in shares { $0.append(progress.fractionCompleted) } }
            #expect(shares { $0.last } == 1)
            let configuration = await container.configuration
            #expect(configuration.name == "org/demo" && configuration.id == .id("org/demo"))
            let files = configuration.modelDirectory(hub: HubApi(downloadBase: hub.cache))
            #expect(FileManager.default.fileExists(atPath: files.appendingPathComponent("tokenizer.json").path))

            let factory = LLMModelFactory(typeRegistry: LLMTypeRegistry.shared, modelRegistry: LLMRegistry.shared)
            let context = try await factory.load(configuration: ModelConfiguration(directory: files))
            #expect(context.configuration.id == .directory(files))
            let still = GenerateParameters(temperature: 0)
            let session = MynahCompatibility.ChatSession(
                try await loadModel(directory: files), instructions: "You are a demo.", generateParameters: still)
            let answer: String = try await session.respond(to: "What is 3 + 4?")
            #expect(answer.contains("7"))
            let loaded = try await loadModelContainer(
                hub: HubApi(downloadBase: hub.cache, endpoint: hub.endpoint), id: "org/demo")
            let other = MynahCompatibility.ChatSession(loaded, generateParameters: still)
            #expect(try await other.respond(to: "What is 3 + 4?").contains("7"))
        }

        @Test func aConversationReturnsWhatMLXSwiftReturns() async throws {
            let container = try await container()
            let still = GenerateParameters(temperature: 0)
            let session = MynahCompatibility.ChatSession(container, generateParameters: still)
            var text = ""
            for try await piece in session.streamResponse(to: "What is 3 + 4?") { text += piece }
            #expect(text.contains("7"))
            var details = "", info: GenerateCompletionInfo?
            for try await item in session.streamDetails(to: "Who are you?") {
                details += item.chunk ?? ""
                info = item.info ?? info
            }
            // The second turn computes only its own tokens.
            #expect(info?.text == details && info?.stats.cachedTokens ?? 0 > 0)

            let history: [Chat.Message] = [.user("What is 3 + 4?"), .assistant(text)]
            let restored = MynahCompatibility.ChatSession(container, history: history, generateParameters: still)
            #expect(try await restored.respond(to: [.user("Who are you?")]) == details)
            await restored.clear()
            #expect(try await restored.respond(to: "What is 3 + 4?") == text)

            let ring = GenerateParameters(maxTokens: 4, maxKVSize: 96, kvBits: 5, temperature: 0)
            let invalid = MynahCompatibility.ChatSession(container, generateParameters: ring)
            await #expect(throws: MynahError.self) { try await invalid.respond(to: "Hi") }
        }

        @Test func aContainerGenerates() async throws {
            let container = try await container(ends: ["<|im_end|>", "not a token"])
            let messages = [["role": "user", "content": "What is 3 + 4?"]]
            let input = try await container.prepare(input: UserInput(messages: messages))
            #expect(try await container.applyChatTemplate(messages: messages) == input.tokens)
            var text = "", info: GenerateCompletionInfo?
            let parameters = GenerateParameters(maxTokens: 240, temperature: 0, repetitionPenalty: 1)
            for try await item in try await container.generate(input: input, parameters: parameters) {
                switch item {
                case .chunk(let chunk): text += chunk
                case .info(let result): info = result
                }
            }
            #expect(text.contains("7") && info?.text == text && info?.finishReason == .stop)
            #expect(info?.generationTokenCount == info?.generatedTokens.count)
            #expect(info?.summary().contains("\(input.tokens.count) tokens") == true)
            let tokens = try await container.encode("Hi")
            #expect(try await container.decode(tokens: tokens) == "Hi")
            #expect(try await container.decode(tokenIds: tokens) == "Hi")
            let processor = await container.processor
            let chat: [Chat.Message] = [.user("Hi")]
            for input in [UserInput(prompt: "Hi"), UserInput(prompt: .chat(chat)), UserInput(chat: chat)] {
                #expect(try await processor.prepare(input: input).tokens.isEmpty == false)
            }
            await #expect(throws: MynahError.self) {
                try await container.prepare(input: UserInput(messages: [["role": "user"]]))
            }
        }

        @Test func parametersSetTheCacheOfAGeneration() async throws {
            let container = try await container()
            let input = try await container.prepare(input: UserInput(prompt: "Who are you?"))
            func info(_ parameters: GenerateParameters) async throws -> GenerateCompletionInfo? {
                var info: GenerateCompletionInfo?
                for try await item in try await container.generate(input: input, parameters: parameters) {
                    info = item.info ?? info
                }
                return info
            }
            var unbounded = GenerateParameters(maxTokens: 600, maxKVSize: 96, temperature: 0, repetitionPenalty: 1)
            unbounded.stopOnEOS = false
            // Longer than the model's context.
            #expect(try await info(unbounded)?.generatedTokens.count == 600)
            unbounded.maxKVSize = nil
            let whole = try #require(try await info(unbounded))
            #expect(whole.generatedTokens.count < 600)
            unbounded.kvBits = 8
            unbounded.kvGroupSize = 32
            let quantized = try #require(try await info(unbounded))
            #expect(quantized.generatedTokens.count == whole.generatedTokens.count)
            #expect(quantized.generatedTokens.first == whole.generatedTokens.first)
            unbounded.kvBits = 5
            await #expect(throws: MynahError.self) { try await info(unbounded) }
        }

        @Test func aClosureUsesTheModel() async throws {
            let container = try await container()
            let result = try await container.perform { context in
                let input = try await context.processor.prepare(input: .init(prompt: "What is 3 + 4?"))
                var text = ""
                for try await item in try generate(input: input, parameters: .init(temperature: 0), context: context) {
                    text += item.chunk ?? ""
                }
                return text
            }
            #expect(result.contains("7"))
            let first = try await container.perform { context in
                let messages = [["role": "user", "content": "What is 3 + 4?"]]
                let tokens = try context.tokenizer.applyChatTemplate(messages: messages)
                let logits = try await context.model(tokens)
                #expect(logits.count == context.model.model.info.vocabularySize)
                return logits.indices.max { logits[$0] < logits[$1] }
            }
            let answer = try await demo.value.generate(messages: [.user("What is 3 + 4?")], parameters: greedy)
            #expect(first == answer.generatedTokens.first)
            let tokenizer = await container.tokenizer
            #expect(try tokenizer.decode(tokens: tokenizer.encode(text: "Hi")) == "Hi")
            #expect(await container.perform(values: 3) { _, value in value + 1 } == 4)
            struct Enough: Error {}
            await #expect(throws: Enough.self) { try await container.perform { _ in throw Enough() } }
        }

        @Test func codeOfFFAIRuns() async throws {
            let model = try await ModelRegistry.dispatchAndLoad(ModelSource.demo)
            var text = "", tokens: [Int] = [], last: GenerationChunk?
            for try await chunk in model.generateStream(messages: [.user("What is 3 + 4?")], parameters: greedy) {
                text += chunk.text
                tokens += chunk.tokens
                #expect(chunk.position == (last?.position ?? -1) + 1 && chunk.isFinal == (chunk.stats != nil))
                last = chunk
            }
            #expect(last?.isFinal == true)
            #expect(try await model.decode(tokens) == text)
            let message = ChatMessage(role: .assistant, content: "7", thinking: "3 + 4")
            #expect(message.thinking == "3 + 4" && message.reasoning == "3 + 4")
            let result = try await model.generate(
                prompt: "Once upon a time", parameters: model.defaultGenerationParameters.with { $0.maxTokens = 4 })
            #expect(result.generatedTokens.count <= 4 && result.tokensPerSecond >= 0)
        }

        @Test func theRegistriesNameRepositories() {
            #expect(LLMRegistry.llama3_2_3B_4bit.name == "mlx-community/Llama-3.2-3B-Instruct-4bit")
            #expect(LLMRegistry.phi3_5_4bit.extraEOSTokens == ["<|end|>"])
            #expect(LLMRegistry.shared.models.count == 22)
            let known = LLMRegistry.shared.configuration(id: "mlx-community/gemma-3-1b-it-qat-4bit")
            #expect(known == LLMRegistry.gemma3_1B_qat_4bit)
            #expect(!LLMRegistry.shared.contains(id: "org/name"))
            #expect(VLMRegistry.qwen3VL4BInstruct4Bit.name == "lmstudio-community/Qwen3-VL-4B-Instruct-MLX-4bit")
            #expect(Set(LLMTypeRegistry.shared.types).isSuperset(of: ["llama", "qwen3", "gemma3_text", "gpt_oss"]))
        }

        @Test func anUnsupportedModelWithVisionIsNamed() async throws {
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            defer { try? FileManager.default.removeItem(at: folder) }
            try Data(#"{"model_type": "moondream3"}"#.utf8).write(to: folder.appendingPathComponent("config.json"))
            #expect(await fails {
                try await VLMModelFactory.shared.loadContainer(configuration: .init(directory: folder))
            } with: { error in
                error.code == .unsupported && error.message.contains("moondream3")
            })
        }
    }
}
