import Mynah
import SwiftUI

struct ModelPicker: View {
    let conversation: Conversation
    @State private var name = ""

    private let models = [
        "mlx-community/Qwen3-0.6B-4bit",
        "mlx-community/Llama-3.2-1B-Instruct-4bit",
        "mlx-community/gemma-3-1b-it-qat-4bit",
        "mlx-community/Qwen3-1.7B-4bit",
        "mlx-community/Llama-3.2-3B-Instruct-4bit",
        "mlx-community/Qwen3-4B-4bit",
        "mlx-community/Qwen3-8B-4bit",
    ]

    var body: some View {
        List {
            ForEach(models, id: \.self) { model in
                ModelRow(name: model) { conversation.open(model) }
            }
            Section("Another one") {
                TextField("organization/name", text: $name)
                    .autocorrectionDisabled()
                    .onSubmit { conversation.open(name) }
            }
        }
        .navigationTitle("Choose a model")
    }
}

private struct ModelRow: View {
    let name: String
    let open: () -> Void
    @State private var report: ModelReport?
    @State private var problem: String?

    var body: some View {
        Button(action: open) {
            LabeledContent(name) {
                if let problem {
                    Text(problem)
                } else if let report {
                    Text(report.bytes, format: .byteCount(style: .file))
                } else {
                    ProgressView()
                }
            }
        }
        .disabled(problem != nil)
        .task {
            do {
                let report = try await Model.inspect(name, context: 4096)
                self.report = report
                problem = report.problem ?? (report.fits == false ? "Too large for this device" : nil)
            } catch is CancellationError {
            } catch {
                problem = error.localizedDescription
            }
        }
    }
}
