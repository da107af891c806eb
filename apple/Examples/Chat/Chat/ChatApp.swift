import SwiftUI

@main
struct ChatApp: App {
    @State private var conversation = Conversation()

    var body: some Scene {
        WindowGroup {
            NavigationStack {
                switch conversation.phase {
                case .choosing:
                    ModelPicker(conversation: conversation)
                case .downloading(let progress):
                    waiting("Downloading", progress.fractionCompleted)
                case .loading(let fraction):
                    waiting("Loading", fraction)
                case .chatting:
                    ChatView(conversation: conversation)
                }
            }
            .alert("That did not work", isPresented: hasProblem) {
            } message: {
                Text(conversation.problem ?? "")
            }
        }
    }

    private var hasProblem: Binding<Bool> {
        Binding { conversation.problem != nil } set: { if !$0 { conversation.problem = nil } }
    }

    private func waiting(_ title: LocalizedStringKey, _ fraction: Double) -> some View {
        VStack(spacing: 16) {
            ProgressView(value: fraction) {
                Text(title)
            } currentValueLabel: {
                Text(fraction, format: .percent.precision(.fractionLength(0)))
            }
            Button("Cancel", role: .cancel, action: conversation.stop)
        }
        .padding()
        .frame(maxWidth: 400)
    }
}
