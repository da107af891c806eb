package mynah

import com.sun.jna.CallbackThreadInitializer
import com.sun.jna.Native
import com.sun.jna.Platform
import java.io.IOException
import java.nio.file.Files
import java.nio.file.Path
import kotlin.io.path.absolutePathString
import mynah.core.uniffiRustFutureContinuationCallbackImpl

/**
 * The compiled core: the file that the system property `mynah.library` names, or else the resources
 * of this package for this system, which are copied into a temporary folder.
 */
internal object NativeLibrary {
    private val problem: MynahException? by lazy {
        try {
            attach(System.getProperty("mynah.library")?.let(Path::of) ?: extract(Platform.RESOURCE_PREFIX))
            null
        } catch (error: MynahException) {
            error
        } catch (error: IOException) {
            MynahException.Unsupported("the native library cannot be copied: $error")
        } catch (error: UnsatisfiedLinkError) {
            MynahException.Unsupported("the native library cannot be loaded: ${error.message}")
        }
    }

    /** @throws MynahException.Unsupported the same one each time when there is no library for this system */
    fun load() {
        problem?.let { throw MynahException.Unsupported(it.message.orEmpty()) }
    }

    private fun attach(library: Path) {
        System.load(library.absolutePathString())
        System.setProperty("uniffi.component.mynah_bindings.libraryOverride", library.absolutePathString())
        // A thread of the library that is detached after each call would become a new Java thread at
        // the next, and one that is no daemon would keep the process alive.
        val staysAttached = CallbackThreadInitializer(true, false, "mynah")
        Native.setCallbackThreadInitializer(uniffiRustFutureContinuationCallbackImpl, staysAttached)
    }

    /** Copies the library and what it needs beside it; the library itself is the last of the list. */
    private fun extract(system: String): Path {
        val list = javaClass.getResourceAsStream("native/$system/files")
            ?: throw MynahException.Unsupported("this package has no native library for $system")
        val names = list.bufferedReader().use { it.readLines() }
        val folder = Files.createTempDirectory("mynah").apply { toFile().deleteOnExit() }
        return names.map { name ->
            val file = folder.resolve(name).apply { toFile().deleteOnExit() }
            val resource = javaClass.getResourceAsStream("native/$system/$name")
                ?: throw MynahException.Unsupported("this package lacks native/$system/$name")
            resource.use { Files.copy(it, file) }
            file
        }.last()
    }
}
