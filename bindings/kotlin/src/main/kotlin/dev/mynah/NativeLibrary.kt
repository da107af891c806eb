package dev.mynah

import com.sun.jna.Callback
import com.sun.jna.CallbackThreadInitializer
import com.sun.jna.Native
import com.sun.jna.Platform
import dev.mynah.core.uniffiCallbackInterfaceLogHandler
import dev.mynah.core.uniffiRustFutureContinuationCallbackImpl
import java.io.IOException
import java.nio.file.Files
import java.nio.file.Path
import kotlin.io.path.absolutePathString

/**
 * The compiled core: the file that the system property `mynah.library` names, or else the resources of
 * this package for this system, which are copied to a temporary folder.
 */
internal object NativeLibrary {
    private val problem: String? by lazy {
        try {
            attach(System.getProperty("mynah.library")?.let(Path::of) ?: extract(Platform.RESOURCE_PREFIX))
            null
        } catch (error: MissingLibrary) {
            error.message
        } catch (error: IOException) {
            "the native library cannot be copied to a temporary folder: $error"
        } catch (error: UnsatisfiedLinkError) {
            "the native library cannot be loaded: ${error.message}"
        }
    }

    /** Loads the library once; throws the same [MynahException.Code.Unsupported] each time if that fails. */
    fun load() {
        problem?.let { throw MynahException(MynahException.Code.Unsupported, it) }
    }

    private fun attach(library: Path) {
        System.load(library.absolutePathString())
        System.setProperty("uniffi.component.mynah_bindings.libraryOverride", library.absolutePathString())
        // A thread of the core that is detached after each call would become a new Java thread at the
        // next call, and a thread that is no daemon would keep the process alive.
        val staysAttached = CallbackThreadInitializer(true, false, "mynah")
        val callbacks = listOf<Callback>(
            uniffiRustFutureContinuationCallbackImpl,
            uniffiCallbackInterfaceLogHandler.log,
            uniffiCallbackInterfaceLogHandler.uniffiFree,
        )
        callbacks.forEach { Native.setCallbackThreadInitializer(it, staysAttached) }
    }

    /** Copies the library and what it needs beside it; the library itself is the last of the list. */
    private fun extract(system: String): Path {
        val list = javaClass.getResourceAsStream("native/$system/files")
            ?: throw MissingLibrary("this package has no native library for $system")
        val names = list.bufferedReader().use { it.readLines() }
        val folder = Files.createTempDirectory("mynah").apply { toFile().deleteOnExit() }
        return names.map { name ->
            val file = folder.resolve(name).apply { toFile().deleteOnExit() }
            val resource = javaClass.getResourceAsStream("native/$system/$name")
                ?: throw MissingLibrary("this package lacks the file native/$system/$name")
            resource.use { Files.copy(it, file) }
            file
        }.last()
    }

    private class MissingLibrary(message: String) : Exception(message)
}
