import Foundation
@testable import Mynah
import Testing

private let model = Task { try await Model.load(Checkpoints.url("vision")) }
private let question = "what is it"
private let short = GenerationParameters(maxTokens: 12, temperature: 0).with { $0.stopOnEOS = false }

extension Everything {
    @Suite struct MediaTests {
        private func answer(_ images: [Media], _ videos: [Media] = []) async throws -> [Int] {
            let message = ChatMessage.user(question, images: images, videos: videos)
            return try await model.value.generate([message], short).result.generatedTokens
        }

        @Test func aPictureIsAnsweredAsInRust() async throws {
            let expected = try Checkpoints.expected.vision
            let file = Checkpoints.url("vision/picture.png")
            #expect(try await answer([.file(file)]) == expected.image)
            #expect(try await answer([.data(try Data(contentsOf: file))]) == expected.image)
            #expect(try await answer([.rgb(Checkpoints.pixels(0), width: 16)]) == expected.rgb)
            #expect(try await answer([]) == expected.text)
            #expect(expected.image != expected.text && expected.image != expected.rgb)
        }

        @Test func aClipIsAnsweredAsInRust() async throws {
            let frames = (0..<4).map { Media.rgb(Checkpoints.pixels($0), width: 16) }
            let tokens = try await answer([], [.frames(frames, framesPerSecond: 2)])
            let expected = try Checkpoints.expected.vision.video
            #expect(tokens == expected)
        }

        @Test func aConversationKeepsItsPictures() async throws {
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
            defer { try? FileManager.default.removeItem(at: folder) }
            let model = try await model.value
            let session = ChatSession(model)
            let picture = ChatMessage(.user, [.image(Checkpoints.url("vision/picture.png")), .text(question)])
            let first = try await session.respond(to: [picture], options: short)
            let expected = try Checkpoints.expected.vision.image
            #expect(first.result.generatedTokens == expected)
            let second = try await session.respond(to: "and", options: short)
            #expect(second.result.stats.cachedTokens >= first.result.promptTokens.count)
            try await session.save(to: folder)
            let restored = try await ChatSession.restore(from: folder, model: model)
            guard case .image(let media)? = restored.transcript.first?.content.first, case .data = media.source else {
                Issue.record("the bytes of the picture are in the file")
                return
            }
            let same = try await restored.respond(to: "more", options: short)
            #expect(same.result.stats.cachedTokens > 0)
            #expect(try await session.respond(to: "more", options: short).content == same.content)
        }

        @Test func badMediaIsATypedError() async throws {
            func refused(_ images: [Media], _ videos: [Media] = []) async -> MynahError? {
                await failure { try await answer(images, videos) }
            }
            #expect(await refused([.data(Data("no picture".utf8))])?.code == .invalidRequest)
            var cut = try Data(contentsOf: Checkpoints.url("vision/picture.png"))
            cut.removeLast(40)
            #expect(await refused([.data(cut)])?.code == .invalidRequest)
            #expect(await refused([.rgb(Data(count: 7), width: 2)])?.code == .invalidRequest)
            let missing = await refused([.file(URL(fileURLWithPath: "/nowhere.png"))])
            #expect(missing?.code == .notFound && missing?.message.contains("/nowhere.png") == true)
            #expect(await refused([.samples([0], sampleRate: 16_000)])?.code == .invalidRequest)
            #expect(await refused([], [.frames([])])?.code == .invalidRequest)
            #expect(await refused([], [.file(URL(fileURLWithPath: "/nowhere.gif"))])?.code == .notFound)
            let blind = try await demo.value
            let message = ChatMessage.user("What?", images: [.rgb(Checkpoints.pixels(0), width: 16)])
            let error = await failure { try await blind.generate([message]).result }
            #expect(error?.code == .invalidRequest)
        }

        @Test func theJSONOfMediaIsReadBack() throws {
            let parts: [ChatMessage.Content] = [
                .image(.rgb(Checkpoints.pixels(1), width: 16)), .image(Data([1, 2, 3])),
                .video(URL(fileURLWithPath: "/clip.gif")),
                .video(.frames([.data(Data([4]))], framesPerSecond: 2)), .text("and"),
            ]
            let message = ChatMessage(.user, parts)
            let json = try JSONEncoder().encode(message)
            #expect(try JSONDecoder().decode(ChatMessage.self, from: json) == message)
        }
    }
}
