import Foundation
import Mynah

/// The checkpoints that `scripts/bindings` writes, and what the library computes from them in Rust.
enum Checkpoints {
    static let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .appendingPathComponent("../../../target/checkpoints").standardizedFileURL

    static func url(_ name: String) -> URL { folder.appendingPathComponent(name) }

    struct Expected: Decodable {
        struct Vision: Decodable { let image, rgb, video, text: [Int] }
        struct Segment: Decodable {
            let start, end: Double
            let text: String
            let words: [String]
        }
        struct Whisper: Decodable {
            let text: String
            let tokens: [Int]
            let segments: [Segment]
        }
        struct Kokoro: Decodable {
            let phonemes: String
            let voices: [String]
            let rate, count: Int
            let sum: Float
        }
        struct Speech: Decodable {
            let probabilities: [Float]
            let stride: Int
            let segments: [[Double]]
        }
        struct Turn: Decodable { let probability: Float }
        struct Speakers: Decodable {
            let probabilities: [[Float]]
            let segments: [[[Double]]]
        }
        struct Codec: Decodable {
            let rate: Int
            let codebooks: [[UInt32]]
            let count: Int
            let sum: Float
        }

        let vision: Vision
        let whisper: Whisper
        let kokoro: Kokoro
        let silero_vad: Speech
        let smart_turn: Turn
        let sortformer: Speakers
        let snac: Codec
    }

    static var expected: Expected {
        get throws { try JSONDecoder().decode(Expected.self, from: Data(contentsOf: url("expected.json"))) }
    }

    /// A picture of 16 rows of 16 pixels.
    static func pixels(_ number: Int) -> Data { Data((0..<768).map { (index: Int) -> UInt8 in UInt8(index * (number + 3) % 251) }) }

    /// Sound that every language computes to the last bit.
    static func noise(_ count: Int) -> [Float] {
        (0..<count).map { index -> Float in
            let step = Float(index * 7919 % 2048)
            return step / 2048 - 0.5
        }
    }
}

/// The error of the library that a call throws; `nil` if it throws none.
func failure<Value>(_ body: () async throws -> Value) async -> MynahError? {
    do {
        _ = try await body()
        return nil
    } catch {
        return error as? MynahError
    }
}
