package dev.mynah

import dev.mynah.core.Arrived
import dev.mynah.core.Downloader as CoreDownloader
import dev.mynah.core.DownloaderException
import dev.mynah.core.FileRequest as CoreRequest
import java.nio.file.Path
import kotlin.coroutines.cancellation.CancellationException

/**
 * Downloads the files of models in place of the library. It only moves bytes: the library handles the
 * list of files, free space, hashes and the layout of the cache, and refuses a file that is not what
 * the hub announced.
 */
fun interface Downloader {
    /**
     * Downloads a file to a local file and returns when it is complete. [progress] takes the number of
     * bytes received so far, from any thread.
     *
     * The library asks for several files at once, on [kotlinx.coroutines.Dispatchers.Default]. When a
     * download is cancelled, it cancels the coroutine of this call and does not wait for it. An
     * exception that this throws reaches the caller as [MynahException.Code.Network] with its message.
     */
    suspend fun download(request: FileRequest, file: Path, progress: (Long) -> Unit)
}

/**
 * A file of a repository to download.
 *
 * @property url the address, which may redirect to another host
 * @property authorization the value of the header `Authorization` for the host of [url]; other hosts
 * must not get it
 * @property repository the repository, such as `org/name`
 * @property commit the commit of the snapshot
 * @property name the name of the file in the repository
 * @property hash the hash that the hub announces for the file
 * @property size the size in bytes
 */
class FileRequest internal constructor(
    val url: String,
    val authorization: String?,
    val repository: String,
    val commit: String,
    val name: String,
    val hash: String,
    val size: Long,
) {
    override fun toString() = "FileRequest($repository@$commit/$name, $size bytes from $url)"
}

/** A downloader as the core calls it. */
internal class DownloaderBridge(private val downloader: Downloader) : CoreDownloader {
    override suspend fun download(request: CoreRequest, arrived: Arrived) {
        val file = with(request) {
            FileRequest(url, authorization, repository, commit, name, hash, size.toLong())
        }
        try {
            downloader.download(file, Path.of(request.path)) { arrived.report(it.coerceAtLeast(0).toULong()) }
        } catch (_: CancellationException) {
            throw DownloaderException.Cancelled()
        } catch (error: Exception) {
            throw DownloaderException.Failed(error.message ?: error.toString())
        }
    }
}
