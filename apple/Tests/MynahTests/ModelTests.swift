import Foundation
@testable import Mynah
import Testing

/// All tests share one device, and some of them measure its memory or suspend it.
@Suite(.serialized) struct Everything {}

/// The embedded model, loaded once for all tests.
let demo = Task { try await Model.load(ModelSource.demo) }

let greedy = GenerationParameters(temperature: 0)

/// Generates until the context is full.
let endless = greedy.with {
    $0.stopOnEOS = false
    $0.maxTokens = 400
}

extension Everything {
    @Suite struct ModelTests {
        @Test func aModelLoadsAndAnswers() async throws {
            let shares = Locked<[Double]>([])
            let model = try await Model.load(ModelSource.demo) { event in
                if case .loading(let share) = event { shares { $0.append(share) } }
            }
            let seen = shares { $0 }
            #expect(seen == seen.sorted() && seen.allSatisfy { (0...1).contains($0) })
            #expect(model.info.modelType == "llama")
            #expect(model.info.contextLength == 512)

            let messages: [ChatMessage] = [.user("What is 3 + 4?")]
            let result = try await model.generate(messages: messages, parameters: greedy)
            #expect(result.text.contains("7"))
            #expect(result.finishReason == .stop)
            #expect(result.tokensPerSecond > 0)
            #expect(try await model.countTokens(Prompt(messages)) == result.promptTokens.count)
            #expect(try await model.decode(result.generatedTokens) == result.text)
            let rendered = try await model.renderChatTemplate(messages)
            #expect(rendered.contains("What is 3 + 4?") && rendered.hasSuffix("assistant\n"))
            #expect(try await model.encode(rendered, addSpecialTokens: false) == result.promptTokens)
        }

        @Test func aLoadIsASequenceOfEventsThatEndsWithTheModel() async throws {
            var last: LoadEvent?
            for try await event in Model.loading(ModelSource.demo) { last = event }
            guard case .ready(let model) = last else {
                Issue.record("the last event carries the model")
                return
            }
            #expect(try await model.generate(messages: [.user("Hi")]).text.isEmpty == false)
        }

        @Test func anErrorOfTheProgressHandlerCancelsTheLoad() async throws {
            struct Enough: Error {}
            await #expect(throws: Enough.self) {
                try await Model.load(ModelSource.demo) { _ in throw Enough() }
            }
        }

        @Test func aCancelledTaskLoadsNothing() async throws {
            let task = Task {
                withUnsafeCurrentTask { $0?.cancel() }
                return try await Model.load(ModelSource.demo)
            }
            await #expect(throws: CancellationError.self) { try await task.value }
        }

        @Test func parametersOverrideThoseOfTheModel() async throws {
            let model = try await demo.value
            let defaults = model.defaultGenerationParameters
            #expect(defaults.maxTokens == 4096 && defaults.stopOnEOS == true)
            let decoded = try JSONDecoder().decode(
                GenerationParameters.self, from: JSONEncoder().encode(defaults))
            #expect(decoded == defaults)
            let short = try await model.generate(
                messages: [.user("Who are you?")], parameters: defaults.with { $0.maxTokens = 2 })
            #expect(short.generatedTokens.count == 2 && short.finishReason == .length)
            let banned = Dictionary(uniqueKeysWithValues: short.generatedTokens.map { ($0, -Float.infinity) })
            let other = try await model.generate(
                messages: [.user("Who are you?")],
                parameters: greedy.with {
                    $0.maxTokens = 2
                    $0.logitBias = banned
                })
            #expect(Set(other.generatedTokens).isDisjoint(with: short.generatedTokens))
        }

        @Test func candidatesAreReportedOnRequest() async throws {
            let model = try await demo.value
            var tokens: [Token] = []
            let parameters = greedy.with { $0.topLogprobs = 3 }
            for try await event in model.generate([.user("Who are you?")], parameters) {
                if case .token(let token) = event { tokens.append(token) }
            }
            #expect(!tokens.isEmpty)
            #expect(tokens.allSatisfy { $0.top.count == 3 && $0.top[0].id == $0.id && $0.top[0].logprob == $0.logprob })
        }

        @Test func errorsHaveACodeAndAMessage() async throws {
            let model = try await demo.value
            func error(_ body: () async throws -> some Any) async -> (any Error)? {
                do { _ = try await body() } catch { return error }
                return nil
            }
            let missing = await error { try await Model.load(URL(fileURLWithPath: "/no/such/model")) }
            #expect(missing?.localizedDescription.hasPrefix("/no/such/model: ") == true)
            let long = String(repeating: "one two ", count: 600)
            let rendered = try await model.renderChatTemplate([.user(long)])
            let tokens = try await model.encode(rendered, addSpecialTokens: false).count
            let overflow = await error { try await model.generate(prompt: long) } as? MynahError
            #expect(overflow?.code == .contextOverflow && overflow?.tokens == tokens && overflow?.limit == 512)
            for (parameters, name) in [
                (greedy.with { $0.topP = 7 }, "top_p"), (greedy.with { $0.maxTokens = -1 }, "maxTokens"),
                (greedy.with { $0.stop = [""] }, "stop"),
            ] {
                let error = await error { try await model.generate(prompt: "Hi", parameters: parameters) }
                #expect((error as? MynahError)?.code == .invalidRequest, "\(name): \(String(describing: error))")
                #expect((error as? MynahError)?.message.contains(name) == true)
                #expect(error?.localizedDescription == (error as? MynahError)?.message)
            }
            #expect(await error { try await model.decode([-1]) } is MynahError)
            #expect(await error { try await model.generate(.raw("")).result } is MynahError)
            let infinite = ChatTemplateOptions(extraContext: ["x": .double(.infinity)])
            #expect(await error { try await model.renderChatTemplate([.user("x")], options: infinite) } is MynahError)
            #expect(await error { try await Model.load("no//such name") } is MynahError)
            do {
                _ = try await Model.load("./nowhere")
                Issue.record("a missing directory loads")
            } catch MynahError.Code.damaged, MynahError.Code.offline {
                Issue.record("a missing directory is not found")
            } catch MynahError.Code.notFound {}
        }

        @Test func aStringIsAMessageOfTheUser() async throws {
            let model = try await demo.value
            let answer = try await model.generate("What is 3 + 4?", greedy).result
            #expect(answer.text == "3 + 4 = 7.")
            let messages = try await model.generate(messages: [.user("What is 3 + 4?")], parameters: greedy)
            #expect(answer.promptTokens == messages.promptTokens && answer.generatedTokens == messages.generatedTokens)
            #expect(try await model.generate(prompt: "What is 3 + 4?", parameters: greedy).text == answer.text)
            let raw = try await model.generate(.raw("What is 3 + 4?"), greedy).result
            #expect(try await raw.promptTokens == model.encode("What is 3 + 4?"))
            #expect(raw.text != answer.text)
        }

        @Test func logsReachTheHandlerOfTheirLevel() async throws {
            let records = Locked<[LogRecord]>([])
            #expect(setLogHandler(level: .warning) { record in records { $0.append(record) } })
            defer { setLogHandler(nil) }
            let session = ChatSession(try await demo.value)
            _ = try await session.respond(to: "Hi", options: greedy)
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
            defer { try? FileManager.default.removeItem(at: folder) }
            try await session.save(to: folder)
            try Data("nonsense".utf8).write(to: folder.appendingPathComponent("cache.safetensors"))
            let model = try await demo.value
            _ = try await ChatSession.restore(from: folder, model: model)
            let seen = records { $0.filter { $0.message.contains(folder.lastPathComponent) } }
            #expect(seen.map(\.level) == [.warning] && seen.first?.target.hasPrefix("mynah") == true)
            setLogHandler(level: .error) { record in records { $0.append(record) } }
            _ = try await ChatSession.restore(from: folder, model: model)
            #expect(records { $0.filter { $0.level < .error } }.count == seen.count)
        }

        @Test func loadOptionsApplyToTheModel() async throws {
            let question: Prompt = [.user("What is 3 + 4?")]
            let whole = try await demo.value.generate(question, greedy).result.text
            let short = try await Model.load(
                ModelSource.demo, options: LoadOptions(maxContextLength: 32, prewarm: true))
            #expect(short.info.contextLength == 32)
            #expect(await fails {
                try await short.generate(prompt: String(repeating: "one two ", count: 40))
            } with: { error in
                error.code == .contextOverflow && error.limit == 32
            })
            let unbounded = endless.with { $0.maxTokens = 200 }
            let ring = try await Model.load(
                ModelSource.demo, options: LoadOptions(maxContextLength: 128, kvCache: .window(96)))
            #expect(try await ring.generate(question, unbounded).result.generatedTokens.count == 200)
            let answer = try await ChatSession(ring).respond(to: "Who are you?", options: unbounded)
            #expect(answer.result.generatedTokens.count == 200)
            var bounded = ChatOptions()
            bounded.overflow = .error
            let ended = try await ChatSession(ring, options: bounded).respond(to: "Hi", options: unbounded)
            #expect(ended.result.generatedTokens.count < 128 && ended.result.finishReason == .length)

            let overrides = ModelOverrides(
                extraEOSTokens: ["<|im_end|>"], tokenizer: ModelSource.demo,
                chatTemplate: "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
            let other = try await Model.load(
                ModelSource.demo, options: LoadOptions(kvCache: .full, overrides: overrides))
            #expect(try await other.renderChatTemplate([.user("Hi")]) == "<user>Hi")

            #expect(await fails {
                try await Model.load(ModelSource.demo, options: LoadOptions(memory: .budget(1)))
            } with: { error in
                error.code == .outOfMemory && (error.needed ?? 0) > 1 && error.available != nil
            })
            // A load that fails restores the limit.
            #expect(try Device.memory.limit == nil)
            let free = try await Model.load(ModelSource.demo, options: LoadOptions(memory: .unlimited))
            #expect(try await free.generate(question, greedy).result.text == whole)
            let memory = try Device.memory
            #expect(memory.limit == nil && memory.peak > 0)

            #expect(await fails {
                try await Model.load(ModelSource.demo, options: LoadOptions(adapter: ModelSource.demo))
            } with: { error in
                [.damaged, .notFound].contains(error.code) && error.message.contains("adapter_config.json")
            })
        }

        @Test func invalidOptionsAreRefused() async throws {
            for (options, name) in [
                (LoadOptions(maxContextLength: -1), "maxContextLength"), (LoadOptions(maxContextLength: 0), "context"),
                (LoadOptions(kvCache: .quantized(bits: 5)), "bits"),
                (LoadOptions(kvCache: .quantized(bits: 999)), "kvCache"),
                (LoadOptions(kvCache: .window(-1)), "window"),
                (LoadOptions(overrides: ModelOverrides(extraEOSTokens: ["no such token"])), "no such token"),
                (LoadOptions(overrides: ModelOverrides(chatTemplate: "{% if %}")), "chat template"),
            ] {
                #expect(await fails {
                    try await Model.load(ModelSource.demo, options: options)
                } with: { error in
                    error.code == .invalidRequest && error.message.contains(name)
                })
            }
        }

        @Test func aPanicOfTheCoreIsAnInternalError() async throws {
            struct Panic: LocalizedError { var errorDescription: String? { "it panicked" } }
            #expect(throws: MynahError(.internal, "it panicked")) { try calling { throw Panic() } }
            #expect(throws: CancellationError.self) { try calling { throw CancellationError() } }
        }

        @Test func eventsReportTheStatesOfAModel() async throws {
            let model = try await Model.load(ModelSource.demo)
            let (first, second) = (model.events, model.events)
            var events = first.makeAsyncIterator()
            #expect(await events.next() == .ready)
            try await model.suspend()
            #expect(await events.next() == .suspended([.application]))
            var late = model.events.makeAsyncIterator()
            #expect(await late.next() == .suspended([.application]))
            try await model.resume()
            #expect(await events.next() == .ready)
            try await model.unload()
            #expect(await events.next() == .unloaded)
            #expect(await events.next() == nil)
            var all: [LifecycleEvent] = []
            for await event in second { all.append(event) }
            #expect(all == [.ready, .suspended([.application]), .ready, .unloaded])
            for await event in model.events { #expect(event == .unloaded) }
        }

        @Test func eventsEndWithTheModelAndDoNotKeepIt() async throws {
            var model: Model? = try await Model.load(ModelSource.demo)
            weak var kept = model
            let events = try #require(model?.events)
            model = nil
            #expect(kept == nil)
            var all: [LifecycleEvent] = []
            for await event in events { all.append(event) }
            #expect(all == [.ready, .unloaded])
        }

        @Test func aModelTellsWhatItTakes() async throws {
            let model = try await Model.load(ModelSource.demo)
            let alone = try await model.memory
            #expect(alone.weights > 1 << 20 && alone.caches == 0)
            let session = ChatSession(model)
            _ = try await session.respond(to: "Hi", options: greedy)
            let used = try await model.memory
            #expect(used.weights == alone.weights && used.caches > 0)
            #expect(try Device.memory.active >= used.weights + used.caches)
            try await model.unload()
            #expect(await fails { try await model.memory } with: { $0.code == .unloaded })
            withExtendedLifetime(session) {}
        }

        @Test func inspectionReadsNoWeights() async throws {
            let report = try await Model.inspect(ModelSource.demo)
            #expect(report.modelType == "llama" && report.problem == nil && report.hasChatTemplate)
            #expect(report.bitsPerWeight == 8 && report.quantization == "affine")
            #expect(try #require(report.memoryNeeded) > report.bytes)
        }

        @Test func anUnloadedModelIsNamedAsTheError() async throws {
            let model = try await Model.load(ModelSource.demo)
            let stream = model.generate([.user("Hi")], endless)
            var iterator = stream.makeAsyncIterator()
            _ = try await iterator.next()
            let session = ChatSession(model)
            try await model.unload()
            #expect(await fails { while try await iterator.next() != nil {} } with: { $0.code == .unloaded })
            #expect(await fails { try await model.generate(prompt: "Hi") } with: { $0.code == .unloaded })
            #expect(await fails { try await session.respond(to: "Hi") } with: { $0.code == .unloaded })
            #expect(try await model.encode("Hi").isEmpty == false)
            try await model.unload()
        }

        @Test func theStoreListsAndDeletesModels() async throws {
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
            defer { try? FileManager.default.removeItem(at: folder) }
            ModelStore.directory = folder
            #expect(try await ModelStore.list().isEmpty)
            let snapshot = folder.appendingPathComponent("models--org--name/snapshots/\(String(repeating: "a", count: 40))")
            try FileManager.default.createDirectory(at: snapshot, withIntermediateDirectories: true)
            try Data("{}".utf8).write(to: snapshot.appendingPathComponent("config.json"))
            let model = try #require(try await ModelStore.list().first)
            #expect(model.id == "org/name" && model.bytes == 2 && model.revisions.count == 1)
            #expect(model.revisions.first?.isComplete == false)
            #expect(try await ModelStore.delete("org/name") == 2)
            await #expect(throws: MynahError.self) { try await ModelStore.delete("org/name") }
            await #expect(throws: MynahError.self) {
                try await Model.load(ModelSource.hub("org/name", offline: true))
            }
        }

        @Test func loadingAndDroppingLeaksNothing() async throws {
            func rounds(_ count: Int, until end: ContinuousClock.Instant) async throws -> Int {
                var rounds = 0
                while rounds < count && ContinuousClock.now < end {
                    let model = try await Model.load(ModelSource.demo)
                    var stream = model.generate("Hi", greedy).makeAsyncIterator()
                    while case .some(let event) = try await stream.next() {
                        if case .text = event { break }
                    }
                    rounds += 1
                }
                try await Device.shrinkCaches()
                return rounds
            }
            _ = try await demo.value
            let end = ContinuousClock.now + .seconds(30)
            #expect(try await rounds(20, until: end) == 20)
            let active = try Device.memory.active
            let early = try await rounds(180, until: end)
            let resident = residentMemory()
            let late = try await rounds(800, until: end)
            #expect(try Device.memory.active <= active)
            // Less than two of its models.
            #expect(residentMemory() - resident < 4 << 20, "after \(20 + early + late) rounds")
        }
    }
}

/// Whether `body` throws an expected error.
func fails<Value>(
    _ body: () async throws -> Value, with isExpected: (MynahError) -> Bool
) async -> Bool {
    do { _ = try await body() } catch let error as MynahError { return isExpected(error) } catch {}
    return false
}

/// The resident memory of the process, in bytes.
func residentMemory() -> Int {
    guard let status = try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8) else { return 0 }
    return (Int(status.split(separator: " ")[1]) ?? 0) * 4096
}
