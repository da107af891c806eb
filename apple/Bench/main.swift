import Foundation
import MynahCore

// What it costs to take an event over the boundary, one by one and in batches, when it is there already:
// `scripts/bench boundary`.
let loading = try loadModel(source: .demo, options: LoadOptions())
let model = try await loading.model()
let parameters = GenerationParameters(maxTokens: 400, temperature: 0, ignoreEnd: true)
let clock = ContinuousClock()

/// The least and the median.
func microseconds(_ take: (GenerationStream) async throws -> Int) async throws -> (Double, Double) {
    var costs: [Double] = []
    for _ in 0..<10 {
        let stream = try model.generate(prompt: .text(text: "Who are you?"), parameters: parameters)
        for _ in 0..<5 {
            // Until the stream is full.
            try await Task.sleep(for: .milliseconds(400))
            var count = 0
            let time = try await clock.measure { count = try await take(stream) }
            costs.append(time / .microseconds(count))
        }
        stream.cancel()
    }
    costs.sort()
    return (costs[0], costs[costs.count / 2])
}

let single = try await microseconds { stream in
    for _ in 0..<32 { _ = try await stream.next() }
    return 32
}
let batched = try await microseconds { stream in try await stream.nextBatch(max: 32).count }
print("Swift: microseconds an event, least and median: \(single) one by one, \(batched) in batches of up to 32")
