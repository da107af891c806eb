import Foundation
@testable import Mynah
import Testing

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

private let repository = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

/// A hub on this machine that has the demo model, and a cache that is empty at first.
final class Hub {
    let endpoint: URL
    let cache = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    private let process = Process()
    private let input = Pipe()

    init() throws {
        let output = Pipe()
        process.executableURL = repository.appendingPathComponent("target/debug/hub")
        process.arguments = ["org/demo"]
        process.standardInput = input
        process.standardOutput = output
        try process.run()
        var line = Data()
        while line.last != UInt8(ascii: "\n") {
            let more = output.fileHandleForReading.availableData
            if more.isEmpty { break }
            line += more
        }
        let text = String(decoding: line, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
        endpoint = try #require(URL(string: text))
    }

    deinit {
        // It serves for as long as this is open. A signal would not reach it: it inherits those that its thread blocks.
        try? input.fileHandleForWriting.close()
        try? FileManager.default.removeItem(at: cache)
    }

    var source: ModelSource { .hub("org/demo", token: "secret", endpoint: endpoint, cache: cache) }
}

/// A downloader that does what a test wants.
struct TestDownloader: Downloader {
    let body: @Sendable (FileRequest, URL, @escaping @Sendable (Int64) -> Void) async throws -> Void

    func download(
        _ request: FileRequest, to file: URL, progress: @escaping @Sendable (Int64) -> Void
    ) async throws {
        try await body(request, file, progress)
    }

    static func content(_ request: FileRequest) throws -> Data {
        try Data(contentsOf: repository.appendingPathComponent("core/demo/\(request.name)"))
    }

    /// From a folder, by halves.
    static let folder = TestDownloader { request, file, progress in
        let content = try content(request)
        progress(Int64(content.count / 2))
        await Task.yield()
        try content.write(to: file)
        progress(Int64(content.count))
    }
}

struct Refused: LocalizedError {
    var errorDescription: String? { "the server room is on fire" }
}

extension Everything {
    @Suite struct DownloadTests {
        private func load(_ hub: Hub, _ body: @escaping @Sendable (
            FileRequest, URL, @escaping @Sendable (Int64) -> Void
        ) async throws -> Void) async throws -> Model {
            try await Model.load(hub.source, options: LoadOptions(downloader: TestDownloader(body: body)))
        }

        private func answers(_ model: Model) async throws -> Bool {
            try await model.generate(messages: [.user("What is 3 + 4?")], parameters: greedy).text.contains("7")
        }

        @Test func aModelIsDownloadedOnceAndThenThere() async throws {
            let hub = try Hub()
            let offline = LoadOptions(network: .offline)
            #expect(await fails { try await Model.load(hub.source, options: offline) } with: { error in
                if case MynahError.offline = error { true } else { false }
            })
            var last: DownloadProgress?
            for try await progress in ModelStore.download(hub.source) {
                #expect(progress.completed >= last?.completed ?? 0 && progress.completed <= progress.total)
                last = progress
            }
            #expect(last?.fractionCompleted == 1)
            for try await progress in ModelStore.download(hub.source) { Issue.record("\(progress) of what is there") }
            let model = try await Model.load(hub.source, options: offline)
            #expect(try await answers(model))
            let configuration = ModelConfiguration(id: "org/demo")
            let files = configuration.modelDirectory(hub: HubApi(downloadBase: hub.cache))
            #expect(FileManager.default.fileExists(atPath: files.appendingPathComponent("config.json").path))
        }

        @Test func whatIsNoRepositoryIsNotDownloaded() async throws {
            await #expect(throws: MynahError.self) { for try await _ in ModelStore.download(ModelSource.demo) {} }
        }

        @Test func whoStopsReadingStopsTheDownload() async throws {
            let hub = try Hub()
            let (hasStarted, isCancelled) = (Locked(false), Locked(false))
            let hanging = TestDownloader { _, _, _ in
                hasStarted { $0 = true }
                do { try await Task.sleep(for: .seconds(600)) } catch { isCancelled { $0 = true } }
            }
            let source = hub.source
            let task = Task { for try await _ in ModelStore.download(source, with: hanging) {} }
            while !hasStarted({ $0 }) { await Task.yield() }
            task.cancel()
            await #expect(throws: CancellationError.self) { try await task.value }
            while !isCancelled({ $0 }) { await Task.yield() }
        }

        @Test func theHostCanBringTheFiles() async throws {
            let hub = try Hub()
            let requests = Locked<[FileRequest]>([])
            let model = try await load(hub) { request, file, progress in
                requests { $0.append(request) }
                try await TestDownloader.folder.download(request, to: file, progress: progress)
            }
            #expect(try await answers(model))
            let seen = requests { $0 }
            #expect(seen.map(\.name).sorted() == [
                "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            ])
            for request in seen {
                #expect(request.authorization == "Bearer secret")
                #expect(request.urlRequest.value(forHTTPHeaderField: "Authorization") == "Bearer secret")
                #expect(request.url.host == hub.endpoint.host && request.url.path.hasSuffix(request.name))
                #expect(try Int64(TestDownloader.content(request).count) == request.size)
            }
        }

        @Test func whatTheHostThrowsIsThrown() async throws {
            let hub = try Hub()
            #expect(await fails { try await load(hub) { _, _, _ in throw Refused() } } with: { error in
                guard case MynahError.network(let reason, nil) = error else { return false }
                return reason.contains("the server room is on fire") && reason.contains("127.0.0.1")
            })
            await #expect(throws: CancellationError.self) {
                try await load(hub) { _, _, _ in throw CancellationError() }
            }
            // What was refused once is asked for again.
            _ = try await load(hub, TestDownloader.folder.body)
        }

        @Test func aHostThatHangsIsCancelled() async throws {
            let hub = try Hub()
            let (hasStarted, isCancelled) = (Locked(false), Locked(false))
            let source = hub.source
            let task = Task {
                try await Model.load(source, options: LoadOptions(downloader: TestDownloader { _, _, _ in
                    hasStarted { $0 = true }
                    do { try await Task.sleep(for: .seconds(600)) } catch { isCancelled { $0 = true } }
                }))
            }
            while !hasStarted({ $0 }) { await Task.yield() }
            task.cancel()
            await #expect(throws: CancellationError.self) { try await task.value }
            while !isCancelled({ $0 }) { await Task.yield() }
        }

        @Test func aSessionOfFoundationBringsTheFiles() async throws {
            let hub = try Hub()
            let downloader = URLSessionDownloader(configuration: .ephemeral)
            let options = LoadOptions(downloader: downloader)
            let model = try await Model.load(hub.source, options: options)
            #expect(try await answers(model))

            let url = hub.endpoint.appendingPathComponent("org/demo/resolve/main/nothing.json")
            let request = FileRequest(url: url, authorization: nil, name: "nothing.json", size: 1)
            let file = hub.cache.appendingPathComponent("nothing.json")
            await #expect(throws: (any Error).self) { try await downloader.download(request, to: file) { _ in } }
            #expect(!FileManager.default.fileExists(atPath: file.path))
        }

        @Test func aTransferThatHasEndedIsNotWaitedFor() async throws {
            let hub = try Hub()
            let transfers = Transfers()
            let session = URLSession(configuration: .ephemeral, delegate: transfers, delegateQueue: nil)
            defer { session.finishTasksAndInvalidate() }
            try FileManager.default.createDirectory(at: hub.cache, withIntermediateDirectories: true)
            for (name, isThere) in [("config.json", true), ("nothing.json", false)] {
                let path = hub.cache.appendingPathComponent(name).path
                let url = hub.endpoint.appendingPathComponent("org/demo/resolve/main/\(name)")
                let task = session.downloadTask(with: url)
                task.taskDescription = path
                task.resume()
                while task.state != .completed { try await Task.sleep(for: .milliseconds(10)) }
                if isThere {
                    try await transfers.end(of: task) { _ in }
                    #expect(FileManager.default.fileExists(atPath: Transfers.place(path).path))
                } else {
                    await #expect(throws: (any Error).self) { try await transfers.end(of: task) { _ in } }
                }
            }
        }

        @Test func nonsenseDoesNoHarm() async throws {
            let hub = try Hub()
            for wrong in [Data(), Data("nonsense".utf8)] {
                #expect(await fails {
                    try await load(hub) { request, file, progress in
                        if !wrong.isEmpty { try wrong.write(to: file) }
                    }
                } with: { error in
                    if case MynahError.damaged = error { true } else { false }
                })
            }
            let late = Locked<[@Sendable (Int64) -> Void]>([])
            let shares = Locked<[Double]>([])
            let honest = TestDownloader.folder
            let options = LoadOptions(downloader: TestDownloader { request, file, progress in
                late { $0.append(progress) }
                for bytes in [-1, .max, 0, 17, .min] as [Int64] {
                    progress(bytes)
                    try await Task.sleep(for: .milliseconds(60))
                }
                try await honest.download(request, to: file) { _ in }
            })
            _ = try await Model.load(hub.source, options: options) { event in
                if case .downloading(let progress) = event { shares { $0.append(progress.fractionCompleted) } }
            }
            let seen = shares { $0 }
            #expect(!seen.isEmpty && seen == seen.sorted() && seen.allSatisfy { (0...1).contains($0) })
            for progress in late({ $0 }) { progress(1) }
        }
    }
}
