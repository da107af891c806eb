import Foundation
@testable import Mynah
import Testing

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

private let repository = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

/// A local hub with the demo model, and an empty cache.
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
        // The hub serves until its input closes. It inherits the signals that its thread blocks, so a signal would not end it.
        try? input.fileHandleForWriting.close()
        try? FileManager.default.removeItem(at: cache)
    }

    var source: ModelSource { .hub("org/demo", token: "secret", endpoint: endpoint, cache: cache) }
}

/// A downloader with the behavior of a test.
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

    /// Copies files of a folder and reports progress at one half.
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

        @Test func aModelIsDownloadedOnce() async throws {
            let hub = try Hub()
            let offline = LoadOptions(network: .offline)
            #expect(await fails { try await Model.load(hub.source, options: offline) } with: { error in
                error.code == .offline
            })
            var last: DownloadProgress?
            for try await progress in ModelStore.download(hub.source) {
                #expect(progress.completed >= last?.completed ?? 0 && progress.completed <= progress.total)
                last = progress
            }
            #expect(last?.fractionCompleted == 1)
            for try await progress in ModelStore.download(hub.source) { Issue.record("\(progress) of a complete model") }
            let model = try await Model.load(hub.source, options: offline)
            #expect(try await answers(model))
            let snapshots = hub.cache.appendingPathComponent("models--org--demo/snapshots")
            let commits = try FileManager.default.contentsOfDirectory(atPath: snapshots.path)
            let config = snapshots.appendingPathComponent("\(commits[0])/config.json")
            #expect(commits.count == 1 && FileManager.default.fileExists(atPath: config.path))
        }

        @Test func onlyRepositoriesAreDownloaded() async throws {
            await #expect(throws: MynahError.self) { for try await _ in ModelStore.download(ModelSource.demo) {} }
        }

        @Test func cancellingTheReaderStopsTheDownload() async throws {
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

        @Test func aDownloaderReceivesTheRequests() async throws {
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
                #expect(request.authorization == "Bearer secret" && request.repository == "org/demo")
                #expect(request.commit.count == 40 && request.url.path.contains(request.commit))
                #expect([40, 64].contains(request.hash.count))
                #expect(request.urlRequest.value(forHTTPHeaderField: "Authorization") == "Bearer secret")
                #expect(request.url.host == hub.endpoint.host && request.url.path.hasSuffix(request.name))
                #expect(try Int64(TestDownloader.content(request).count) == request.size)
            }
        }

        @Test func anErrorOfTheDownloaderReachesTheCaller() async throws {
            let hub = try Hub()
            #expect(await fails { try await load(hub) { _, _, _ in throw Refused() } } with: { error in
                error.code == .network && error.retryAfter == nil
                    && error.message.contains("the server room is on fire") && error.message.contains("127.0.0.1")
            })
            await #expect(throws: CancellationError.self) {
                try await load(hub) { _, _, _ in throw CancellationError() }
            }
            // The next load asks for the refused files again.
            _ = try await load(hub, TestDownloader.folder.body)
        }

        @Test func aHangingDownloaderIsCancelled() async throws {
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

        @Test func aURLSessionDownloadsTheFiles() async throws {
            let hub = try Hub()
            let transfers = hub.cache.appendingPathComponent("transfers")
            let downloader = URLSessionDownloader(configuration: .ephemeral, directory: transfers)
            let options = LoadOptions(downloader: downloader)
            let model = try await Model.load(hub.source, options: options)
            #expect(try await answers(model))

            let url = hub.endpoint.appendingPathComponent("org/demo/resolve/main/nothing.json")
            let request = self.request("nothing.json", at: url)
            let file = hub.cache.appendingPathComponent("nothing.json")
            await #expect(throws: (any Error).self) { try await downloader.download(request, to: file) { _ in } }
            #expect(!FileManager.default.fileExists(atPath: file.path))
            #expect(try FileManager.default.contentsOfDirectory(atPath: transfers.path).isEmpty)
        }

        @Test func theLibrarysOwnRequestsGoThroughASession() async throws {
            ModelStore.use(.ephemeral)
            defer { ModelStore.use(nil) }
            let hub = try Hub()
            var last: DownloadProgress?
            for try await progress in ModelStore.download(hub.source) { last = progress }
            #expect(last?.fractionCompleted == 1)
            // Every file has been verified, so the model loads without the network.
            let model = try await Model.load(hub.source, options: LoadOptions(network: .offline))
            #expect(try await answers(model))

            let missing = ModelSource.hub("org/nothing", endpoint: hub.endpoint, cache: hub.cache)
            #expect(await fails { try await Model.load(missing) } with: { $0.code == .notFound })
            let nowhere = ModelSource.hub(
                "org/demo", endpoint: URL(string: "http://127.0.0.1:9"), cache: hub.cache.appendingPathComponent("empty"))
            #expect(await fails { try await Model.load(nowhere) } with: { error in
                error.code == .network && error.message.contains("127.0.0.1")
            })
        }

        private func request(_ name: String, at url: URL) -> FileRequest {
            FileRequest(
                url: url, authorization: nil, repository: "org/demo", commit: String(repeating: "c", count: 40),
                name: name, hash: String(repeating: "a", count: 64), size: 1)
        }

        @Test func aFileThatCameInTheBackgroundIsFoundAtAnyPath() async throws {
            let hub = try Hub()
            let folder = hub.cache.appendingPathComponent("transfers")
            let request = request("config.json", at: URL(fileURLWithPath: "/no/such/server"))
            #expect(!request.transferKey.contains(hub.cache.path))
            let complete = Transfers(directory: folder).file(request.transferKey, .complete)
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            try Data("{}".utf8).write(to: complete)
            let file = hub.cache.appendingPathComponent("config.json")
            try await URLSessionDownloader(configuration: .ephemeral, directory: folder)
                .download(request, to: file) { _ in }
            #expect(try Data(contentsOf: file) == Data("{}".utf8))
            #expect(!FileManager.default.fileExists(atPath: complete.path))
        }

        @Test func anInterruptedTransferKeepsItsResumeData() throws {
            let hub = try Hub()
            let transfers = Transfers(directory: hub.cache.appendingPathComponent("transfers"))
            let session = URLSession(configuration: .ephemeral)
            defer { session.invalidateAndCancel() }
            let task = session.downloadTask(with: hub.endpoint)
            let key = request("config.json", at: hub.endpoint).transferKey
            task.taskDescription = key
            #expect(transfers.takeResumeData(key) == nil)
            let resumeData = Data("resume".utf8)
            let error = NSError(
                domain: NSURLErrorDomain, code: URLError.networkConnectionLost.rawValue,
                userInfo: [Transfers.resumeDataKey: resumeData])
            transfers.urlSession(session, task: task, didCompleteWithError: error)
            #expect(transfers.hasResumeData(key))
            #expect(transfers.takeResumeData(key) == resumeData)
            #expect(!transfers.hasResumeData(key))
        }

        @Test func aTransferThatHasEndedReturnsAtOnce() async throws {
            let hub = try Hub()
            let transfers = Transfers(directory: hub.cache)
            let session = URLSession(configuration: .ephemeral, delegate: transfers, delegateQueue: nil)
            defer { session.finishTasksAndInvalidate() }
            try FileManager.default.createDirectory(at: hub.cache, withIntermediateDirectories: true)
            for (name, isThere) in [("config.json", true), ("nothing.json", false)] {
                let url = hub.endpoint.appendingPathComponent("org/demo/resolve/main/\(name)")
                let task = session.downloadTask(with: url)
                task.taskDescription = "org/demo/\(name)"
                task.resume()
                while task.state != .completed { try await Task.sleep(for: .milliseconds(10)) }
                if isThere {
                    try await transfers.end(of: task) { _ in }
                    #expect(FileManager.default.fileExists(atPath: transfers.file("org/demo/\(name)", .complete).path))
                } else {
                    await #expect(throws: (any Error).self) { try await transfers.end(of: task) { _ in } }
                }
            }
        }

        @Test func wrongFilesAndProgressOfADownloaderAreRefused() async throws {
            let hub = try Hub()
            for wrong in [Data(), Data("nonsense".utf8)] {
                #expect(await fails {
                    try await load(hub) { request, file, progress in
                        if !wrong.isEmpty { try wrong.write(to: file) }
                    }
                } with: { error in
                    error.code == .damaged
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
