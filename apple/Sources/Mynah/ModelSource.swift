import Foundation
import MynahCore

/// What an application names a model by: a `String` (`"org/repo"`, `"org/repo@revision"` or a directory), the `URL`
/// of a directory, or a ``ModelSource``.
public protocol ModelLocator: Sendable {
    var source: ModelSource { get }
}

/// Where a model is.
public enum ModelSource: ModelLocator, Hashable, Sendable {
    /// A repository on a hub, or a directory if there is one of this name.
    case named(String)
    /// A directory in the layout that model repositories have.
    case directory(URL)
    /// A repository on a hub. What is `nil` is as the environment says.
    case hub(
        _ repository: String, revision: String? = nil, token: String? = nil, endpoint: URL? = nil, cache: URL? = nil,
        offline: Bool = false)
    /// The tiny model inside of this library, for tests and first steps.
    case demo

    public var source: ModelSource { self }
}

extension String: ModelLocator {
    public var source: ModelSource { .named(self) }
}

extension URL: ModelLocator {
    public var source: ModelSource { .directory(self) }
}

extension ModelSource {
    /// In the folder of ``ModelStore``, where one is set.
    var core: MynahCore.ModelSource {
        switch self {
        case .demo: .demo
        case .directory(let url): .directory(path: url.path)
        case .named(let name):
            if let folder = ModelStore.chosenDirectory, !isDirectory(name) {
                .hub(source: HubSource(repository: name, cache: folder.path))
            } else {
                .named(name: name)
            }
        case .hub(let repository, let revision, let token, let endpoint, let cache, let offline):
            .hub(
                source: HubSource(
                    repository: repository, revision: revision, endpoint: endpoint?.absoluteString, token: token,
                    cache: (cache ?? ModelStore.chosenDirectory)?.path, offline: offline))
        }
    }

    /// As the core tells the two apart.
    private func isDirectory(_ name: String) -> Bool {
        var isDirectory: ObjCBool = false
        let exists = FileManager.default.fileExists(atPath: name, isDirectory: &isDirectory)
        return [".", "/", "~"].contains(name.prefix(1)) || exists && isDirectory.boolValue
    }
}
