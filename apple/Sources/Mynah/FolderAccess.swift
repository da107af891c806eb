import Foundation

/// Access to folders outside the sandbox that the user has picked, for the life of this object. Without it a sandboxed
/// app cannot read them.
final class FolderAccess: Sendable {
    #if canImport(Darwin)
    private let folders: [URL]

    init(_ sources: [ModelSource?]) {
        folders = sources.compactMap(\.?.folder).filter { $0.startAccessingSecurityScopedResource() }
    }

    deinit { folders.forEach { $0.stopAccessingSecurityScopedResource() } }
    #else
    init(_ sources: [ModelSource?]) {}
    #endif
}

extension ModelSource {
    fileprivate var folder: URL? { if case .directory(let url) = self { url } else { nil } }
}
