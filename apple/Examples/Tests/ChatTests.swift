import Mynah
import Testing

@testable import Chat

@MainActor
@Suite struct ChatTests {
    let conversation = Conversation()

    private func open(_ model: some ModelLocator) async {
        conversation.open(model)
        await conversation.work?.value
    }

    private func ask(_ question: String) async -> String? {
        conversation.send(question)
        await conversation.work?.value
        return conversation.messages.last?.text
    }

    @Test func aConversationIsOpenedAnsweredAndClosed() async throws {
        #expect(conversation.phase == .choosing)
        await open(ModelSource.demo)
        #expect(conversation.phase == .chatting)
        #expect(await ask("What is 3 + 4?") == "3 + 4 = 7.")
        #expect(!conversation.isAnswering)
        #expect(conversation.messages.map(\.role) == [.user, .assistant])
        #expect(try #require(conversation.lastResult).tokensPerSecond > 0)
        await conversation.close()
        #expect(conversation.phase == .choosing)
        #expect(conversation.messages.isEmpty)
    }

    @Test func anAnswerIsStoppedAndTheNextOneIsWhole() async {
        await open(ModelSource.demo)
        conversation.send("What is 3 + 4?")
        #expect(conversation.isAnswering)
        conversation.stop()
        await conversation.work?.value
        #expect(!conversation.isAnswering)
        #expect(conversation.problem == nil)
        #expect(await ask("What is 3 + 4?") == "3 + 4 = 7.")
    }

    @Test func loadingIsStopped() async {
        conversation.open(ModelSource.demo)
        conversation.stop()
        await conversation.work?.value
        #expect(conversation.phase == .choosing)
        #expect(conversation.problem == nil)
    }

    @Test func aMissingModelIsAProblemAndTheNextOneLoads() async {
        await open("./nowhere")
        #expect(conversation.problem?.contains("nowhere") == true)
        #expect(conversation.phase == .choosing)
        await open(ModelSource.demo)
        #expect(conversation.problem == nil)
        #expect(conversation.phase == .chatting)
    }
}
