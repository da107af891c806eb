import Foundation
import Mynah
import MynahCore

// The cost of taking a waiting event from the core: `scripts/bench boundary`.

/// The minimum and the median, in microseconds per event.
func cost(
    _ model: MynahCore.Model, _ take: @Sendable (MynahCore.GenerationStream) async throws -> Int
) async throws -> String {
    let parameters = GenerationParameters(maxTokens: 400, temperature: 0, ignoreEnd: true)
    var costs: [Double] = []
    for _ in 0..<30 {
        let stream = try model.generate(prompt: .raw(text: "Who are you?"), parameters: parameters)
        for _ in 0..<10 {
            // The core computes ahead until the stream is full.
            try await Task.sleep(for: .milliseconds(50))
            // The device may be the processor that runs this code.
            try await pause()
            // A thread is slow after it has slept.
            _ = try takeAll(stream, 0)
            var count = 0
            let time = try await ContinuousClock().measure { count = try await take(stream) }
            try resume()
            costs.append(time / .microseconds(max(count, 1)))
        }
        stream.cancel()
    }
    costs.sort()
    return String(format: "%.2f and %.2f", costs[0], costs[costs.count / 2])
}

/// Takes all waiting events, `size` at a time.
func takeAll(_ stream: MynahCore.GenerationStream, _ size: UInt32) throws -> Int {
    var count = 0
    while case let events = try CoreEvent.unpack(stream.ready(max: size)), !events.isEmpty { count += events.count }
    return count
}

func measure() async throws {
    let loading = try loadModel(source: .demo, kind: .language, options: LoadOptions())
    guard case .language(let model) = try await loading.model() else { return }
    let batches = try await cost(model) { stream in try takeAll(stream, 32) }
    let single = try await cost(model) { stream in try takeAll(stream, 1) }
    print("Swift: microseconds per event, minimum and median: \(batches) in batches, \(single) one by one")
}

/// The resident memory of the process, in bytes.
func residentMemory() throws -> Int {
    let status = try String(contentsOfFile: "/proc/self/statm", encoding: .utf8).split(separator: " ")
    return (Int(status[1]) ?? 0) * 4096
}

/// Loads, uses and drops a model a thousand times.
func load() async throws {
    var resident = 0
    let start = ContinuousClock.now
    for round in 0..<1000 {
        if round == 200 { resident = try residentMemory() }
        let model = try await Model.load(ModelSource.demo)
        for try await event in model.generate("Hi") { if case .text = event { break } }
    }
    try await Device.shrinkCaches()
    let growth = try residentMemory() - resident
    print("Swift: 1000 models in \(ContinuousClock.now - start), memory from the 200th on: \(growth / 1024) KiB more")
}

try await measure()
#if os(Linux)
try await load()
#endif
