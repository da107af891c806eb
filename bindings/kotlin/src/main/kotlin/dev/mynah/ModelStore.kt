package dev.mynah

import dev.mynah.core.StoredModel as CoreModel
import dev.mynah.core.StoredRevision as CoreRevision
import dev.mynah.core.defaultCache
import dev.mynah.core.deleteModel
import dev.mynah.core.downloadModel
import dev.mynah.core.storedModels
import java.nio.file.Path
import java.time.Instant
import kotlin.io.path.pathString
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.withContext

/**
 * The models on the disk, in the cache layout of Python's `huggingface_hub`.
 *
 * @property directory the folder of all models; by default the one that the environment configures
 */
class ModelStore(val directory: Path = Path.of(call { defaultCache() })) {
    /**
     * Downloads a model, unless it is on the disk, when the flow is collected. The flow ends when the
     * download is complete. Cancelling the collector stops the download and keeps its bytes; the next
     * download resumes. A source without a cache of its own is downloaded to [directory].
     *
     * The flow throws [MynahException].
     */
    fun download(source: ModelSource, downloader: Downloader? = null): Flow<DownloadProgress> = flow {
        val stored = when (source) {
            is ModelSource.Named -> ModelSource.Hub(source.name, cache = directory)
            is ModelSource.Hub -> if (source.cache == null) source.within(directory) else source
            else -> source
        }
        open { downloadModel(stored.toCore(), downloader?.let(::DownloaderBridge)) }.use { downloading ->
            while (true) emit((await { downloading.next() } ?: break).toMynah())
        }
    }

    /**
     * The models of which files are on the disk.
     *
     * @throws MynahException when the folder cannot be read
     */
    suspend fun list(): List<StoredModel> =
        withContext(Dispatchers.IO) { call { storedModels(directory.pathString) } }.map { it.toMynah() }

    /**
     * Deletes a model or one of its revisions, and returns the number of freed bytes.
     *
     * @throws MynahException when the model does not exist or cannot be deleted
     */
    suspend fun delete(id: String, revision: String? = null): Long = withContext(Dispatchers.IO) {
        call { deleteModel(id, revision, directory.pathString) }.toLong()
    }
}

/**
 * A repository of which files are on the disk.
 *
 * @property id the name, such as `org/name`
 * @property bytes bytes on the disk, partial downloads included
 * @property revisions the revisions, the most recently used first
 */
@ConsistentCopyVisibility
data class StoredModel internal constructor(
    val id: String,
    val bytes: Long,
    val revisions: List<Revision>,
) {
    /**
     * One revision of a repository.
     *
     * @property commit the hash of the commit
     * @property names the branches and tags that pointed at the commit when it was downloaded
     * @property bytes bytes of the files; other revisions may share them
     * @property lastUsed the time of the last use, if known
     * @property isComplete whether all files that a model needs are on the disk
     */
    @ConsistentCopyVisibility
    data class Revision internal constructor(
        val commit: String,
        val names: List<String>,
        val bytes: Long,
        val lastUsed: Instant?,
        val isComplete: Boolean,
    )
}

private fun CoreModel.toMynah() =
    StoredModel(repository, bytes.toLong(), revisions.map { it.toMynah() })

private fun CoreRevision.toMynah() =
    StoredModel.Revision(commit, names, bytes.toLong(), lastUsed, complete)
