import Foundation
internal import MynahCore

/// The name of a model: a `String` (`"org/repo"`, `"org/repo@revision"` or a directory), the `URL`
/// of a directory, or a ``ModelSource``.
public protocol ModelLocator: Sendable {
    var source: ModelSource { get }
}

/// Where the files of a model are.
public enum ModelSource: ModelLocator, Hashable, Sendable {
    /// A repository on a hub, or a directory if one of this name exists.
    case named(String)
    /// A directory with the files of a model repository.
    case directory(URL)
    /// A repository on a hub. The environment configures fields that are `nil`. `token` is an access token.
    case hub(
        _ repository: String, revision: String? = nil, token: String? = nil, endpoint: URL? = nil, cache: URL? = nil,
        offline: Bool = false)
    /// The tiny model that the library embeds, for tests and first steps.
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
    /// The source with the folder of ``ModelStore``, if one is set.
    var core: MynahCore.ModelSource {
        URLSessionClient.useByDefault
        switch self {
        case .demo: return .demo
        case .directory(let url): return .directory(path: url.path)
        case .named(let name):
            if let folder = ModelStore.chosenDirectory, !isDirectory(name) {
                return .hub(source: HubSource(repository: name, cache: folder.path))
            } else {
                return .named(name: name)
            }
        case .hub(let repository, let revision, let token, let endpoint, let cache, let offline):
            return .hub(
                source: HubSource(
                    repository: repository, revision: revision, endpoint: endpoint?.absoluteString, token: token,
                    cache: (cache ?? ModelStore.chosenDirectory)?.path, offline: offline))
        }
    }

    /// Whether the core takes the name for a directory.
    private func isDirectory(_ name: String) -> Bool {
        var isDirectory: ObjCBool = false
        let exists = FileManager.default.fileExists(atPath: name, isDirectory: &isDirectory)
        return [".", "/", "~"].contains(name.prefix(1)) || exists && isDirectory.boolValue
    }
}
