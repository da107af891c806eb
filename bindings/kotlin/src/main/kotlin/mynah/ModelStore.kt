package mynah

import java.nio.file.Path
import java.time.Instant
import kotlin.io.path.pathString
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.withContext
import mynah.core.defaultCache
import mynah.core.deleteModel
import mynah.core.downloadModel
import mynah.core.storedModels
import mynah.core.StoredModel as CoreModel
import mynah.core.StoredRevision as CoreRevision

/**
 * The models in a folder, in the layout that Python's `huggingface_hub` shares.
 *
 * @property directory the folder; by default the one that the environment names
 */
class ModelStore(val directory: Path = Path.of(call { defaultCache() })) {
    /**
     * Downloads a model, unless it is on the disk, when it is collected; the flow ends when the model
     * is there. Cancelling the collector stops the download; what has arrived stays, and the next one
     * goes on from there. A source that names no cache of its own comes into this folder.
     *
     * The flow throws [MynahException].
     */
    fun download(source: ModelSource, downloader: Downloader? = null): Flow<DownloadProgress> = flow {
        val here = when (source) {
            is ModelSource.Named -> ModelSource.Hub(source.name, cache = directory)
            is ModelSource.Hub -> if (source.cache == null) source.within(directory) else source
            else -> source
        }
        open { downloadModel(here.toCore(), downloader?.let(::DownloaderBridge)) }.use { downloading ->
            while (true) emit((await { downloading.next() } ?: break).toMynah())
        }
    }

    /**
     * The models of which something is there.
     *
     * @throws MynahException when the folder cannot be read
     */
    suspend fun list(): List<StoredModel> =
        withContext(Dispatchers.IO) { call { storedModels(directory.pathString) } }.map { it.toMynah() }

    /**
     * Deletes a model, or one revision of it; returns how many bytes became free.
     *
     * @throws MynahException when there is no such model, or it cannot be deleted
     */
    suspend fun delete(repository: String, revision: String? = null): Long = withContext(Dispatchers.IO) {
        call { deleteModel(repository, revision, directory.pathString) }.toLong()
    }
}

/**
 * A repository of which something is on the disk.
 *
 * @property repository its name, such as `org/name`
 * @property bytes bytes on the disk, what is unfinished included
 * @property revisions its revisions, the one that was used last first
 */
data class StoredModel(val repository: String, val bytes: Long, val revisions: List<StoredRevision>)

/**
 * One revision of a repository.
 *
 * @property commit the hash of the commit
 * @property names the branches and tags that stood at it when they were fetched
 * @property bytes bytes of its files; other revisions may share them
 * @property lastUsed when it was used last, as far as that is known
 * @property isComplete whether all that a model needs is there
 */
data class StoredRevision(
    val commit: String,
    val names: List<String>,
    val bytes: Long,
    val lastUsed: Instant?,
    val isComplete: Boolean,
)

private fun CoreModel.toMynah() =
    StoredModel(repository, bytes.toLong(), revisions.map { it.toMynah() })

private fun CoreRevision.toMynah() =
    StoredRevision(commit, names, bytes.toLong(), lastUsed, complete)
