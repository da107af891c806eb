import Mynah
import PhotosUI
import SwiftUI

struct ChatView: View {
    let conversation: Conversation
    @State private var draft = ""
    @State private var picked: [PhotosPickerItem] = []

    var body: some View {
        ScrollView {
            LazyVStack(spacing: 12) {
                ForEach(Array(conversation.messages.enumerated()), id: \.offset) { _, message in
                    Bubble(message: message)
                }
            }
            .padding()
        }
        .defaultScrollAnchor(.bottom)
        .safeAreaInset(edge: .bottom) {
            VStack(spacing: 4) {
                if let result = conversation.lastResult {
                    Statistics(result: result)
                }
                HStack {
                    PhotosPicker(selection: $picked, maxSelectionCount: 4, matching: .images) {
                        Label("Pictures", systemImage: picked.isEmpty ? "photo" : "photo.fill")
                    }
                    TextField("Message", text: $draft, axis: .vertical)
                        .textFieldStyle(.roundedBorder)
                        .onSubmit(send)
                    if conversation.isAnswering {
                        Button("Stop", systemImage: "stop.circle.fill", action: conversation.stop)
                    } else {
                        Button("Send", systemImage: "arrow.up.circle.fill", action: send)
                            .disabled(draft.isEmpty)
                    }
                }
                .labelStyle(.iconOnly)
                .imageScale(.large)
            }
            .padding()
            .background(.bar)
        }
        .navigationTitle("Chat")
        .toolbar {
            Button("Close") { Task { await conversation.close() } }
        }
    }

    private func send() {
        guard !draft.isEmpty, !conversation.isAnswering else { return }
        let (text, items) = (draft, picked)
        (draft, picked) = ("", [])
        Task {
            var pictures: [Data] = []
            for item in items {
                if let data = try? await item.loadTransferable(type: Data.self) { pictures.append(data) }
            }
            conversation.send(text, pictures: pictures)
        }
    }
}

private struct Bubble: View {
    let message: ChatMessage

    var body: some View {
        let isMine = message.role == .user
        Text(message.text.isEmpty ? "…" : message.text)
            .textSelection(.enabled)
            .padding(10)
            .background(isMine ? Color.accentColor.opacity(0.2) : Color.gray.opacity(0.15))
            .clipShape(.rect(cornerRadius: 12))
            .frame(maxWidth: .infinity, alignment: isMine ? .trailing : .leading)
    }
}

private struct Statistics: View {
    let result: GenerationResult

    var body: some View {
        if result.finishReason == .length {
            Text("The answer was cut: maxTokens or the context ended it.").font(.caption)
        }
        Text("""
            \(result.tokensPerSecond, format: .number.precision(.fractionLength(1))) tokens/s, \
            first after \(result.stats.timeToFirstToken, format: .number.precision(.fractionLength(2))) s, \
            \(result.stats.peakMemory, format: .byteCount(style: .memory))
            """)
            .font(.caption)
            .foregroundStyle(.secondary)
            .monospacedDigit()
    }
}
