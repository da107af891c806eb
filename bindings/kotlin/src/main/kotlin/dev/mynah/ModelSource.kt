package dev.mynah

import dev.mynah.core.HubSource
import dev.mynah.core.ModelSource as CoreSource
import java.nio.file.Path
import kotlin.io.path.pathString

/** Where the files of a model are. */
sealed interface ModelSource {
    /**
     * A directory if one of this name exists or the name starts with `.`, `/` or `~`; else `org/name` or
     * `org/name@revision` on the hub that the environment configures.
     *
     * @property name the name
     */
    data class Named(val name: String) : ModelSource

    /**
     * A directory with the files of a model repository.
     *
     * @property path its path
     */
    data class Directory(val path: Path) : ModelSource

    /**
     * A repository on a hub. The environment configures fields that are null.
     *
     * @property repository its name, such as `org/name`
     * @property revision a branch, a tag or a commit; by default `main`
     * @property token the access token
     * @property endpoint the address of the hub
     * @property cache the folder of the hub cache
     * @property offline whether network requests are forbidden
     */
    class Hub(
        val repository: String,
        val revision: String? = null,
        val token: String? = null,
        val endpoint: String? = null,
        val cache: Path? = null,
        val offline: Boolean = false,
    ) : ModelSource {
        override fun equals(other: Any?) = other is Hub && other.fields() == fields()

        override fun hashCode() = fields().hashCode()

        // Logs must not contain the token.
        override fun toString() = "Hub($repository, revision=$revision)"

        internal fun within(cache: Path) = Hub(repository, revision, token, endpoint, cache, offline)

        private fun fields() = listOf(repository, revision, token, endpoint, cache, offline)
    }

    /** The tiny model that the library embeds, for tests and first steps. */
    data object Demo : ModelSource
}

internal fun ModelSource.toCore(): CoreSource = when (this) {
    is ModelSource.Named -> CoreSource.Named(name)
    is ModelSource.Directory -> CoreSource.Directory(path.pathString)
    is ModelSource.Hub ->
        CoreSource.Hub(HubSource(repository, revision, endpoint, token, cache?.pathString, offline))
    ModelSource.Demo -> CoreSource.Demo
}
