package mynah

import java.nio.file.Path
import kotlin.coroutines.cancellation.CancellationException
import mynah.core.Arrived
import mynah.core.Downloader as CoreDownloader
import mynah.core.DownloaderException
import mynah.core.FileRequest as CoreRequest

/**
 * Brings the files of models here in place of the library. It only moves bytes: the list of files, free
 * space, hashes and the place on the disk are the library's, so a file that is not what the hub
 * announced is refused.
 */
fun interface Downloader {
    /**
     * Puts a file into a local file, and returns when it is there. `progress` takes the bytes that have
     * arrived so far; what makes no sense does no harm.
     *
     * Several files are asked for at once, on [kotlinx.coroutines.Dispatchers.Default]. When nobody
     * wants the file any more, the coroutine is cancelled and not waited for. What this throws is
     * thrown where the model was asked for, as [MynahException.Network] with its message.
     */
    suspend fun download(request: FileRequest, file: Path, progress: (Long) -> Unit)
}

/**
 * A file of a repository.
 *
 * @property url its address, which may redirect to another host
 * @property authorization what the header `Authorization` shall be for the host of [url], and for no other
 * @property name its name in the repository
 * @property size its size in bytes
 */
class FileRequest(val url: String, val authorization: String?, val name: String, val size: Long) {
    override fun toString() = "FileRequest($name, $size bytes from $url)"
}

/** A downloader as the library calls it. */
internal class DownloaderBridge(private val downloader: Downloader) : CoreDownloader {
    override suspend fun download(request: CoreRequest, arrived: Arrived) {
        val file = with(request) { FileRequest(url, authorization, name, size.toLong()) }
        try {
            downloader.download(file, Path.of(request.path)) { arrived.report(it.coerceAtLeast(0).toULong()) }
        } catch (_: CancellationException) {
            throw DownloaderException.Cancelled()
        } catch (error: Exception) {
            throw DownloaderException.Failed(error.message ?: error.toString())
        }
    }
}
