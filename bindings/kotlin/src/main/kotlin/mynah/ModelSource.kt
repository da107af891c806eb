package mynah

import java.nio.file.Path
import kotlin.io.path.pathString
import mynah.core.HubSource
import mynah.core.ModelSource as CoreSource

/** Where a model is. */
sealed interface ModelSource {
    /**
     * `org/name` or `org/name@revision` on a hub, as the environment says; or a directory, if there is
     * one of this name or if it starts with `.`, `/` or `~`.
     */
    data class Named(val name: String) : ModelSource

    /** A directory in the layout that model repositories have. */
    data class Directory(val path: Path) : ModelSource

    /**
     * A repository on a hub. What is not given is as the environment says.
     *
     * @property repository its name, such as `org/name`
     * @property revision a branch, a tag or a commit; by default `main`
     * @property endpoint the address of the hub
     * @property token the secret that the hub admits its user by
     * @property cache the folder of the cache
     * @property offline whether no request may be made
     */
    class Hub(
        val repository: String,
        val revision: String? = null,
        val endpoint: String? = null,
        val token: String? = null,
        val cache: Path? = null,
        val offline: Boolean = false,
    ) : ModelSource {
        override fun toString() = "Hub($repository, revision=$revision)"

        internal fun within(cache: Path) = Hub(repository, revision, endpoint, token, cache, offline)
    }

    /** The tiny model inside of this library. */
    data object Demo : ModelSource
}

internal fun ModelSource.toCore(): CoreSource = when (this) {
    is ModelSource.Named -> CoreSource.Named(name)
    is ModelSource.Directory -> CoreSource.Directory(path.pathString)
    is ModelSource.Hub ->
        CoreSource.Hub(HubSource(repository, revision, endpoint, token, cache?.pathString, offline))
    ModelSource.Demo -> CoreSource.Demo
}
