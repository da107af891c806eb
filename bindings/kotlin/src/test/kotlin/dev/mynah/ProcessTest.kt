package dev.mynah

import java.io.File
import java.nio.file.Path
import java.util.concurrent.TimeUnit
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** Runs the example in its own process. */
class ProcessTest {
    private class Run(val status: Int, val output: String, val errors: String)

    private fun chat(folder: Path, vararg options: String, model: String? = null): Run {
        val (output, errors) = listOf("output", "errors").map { folder.resolve(it).toFile() }
        val java = Path.of(System.getProperty("java.home"), "bin", "java").toString()
        val classes = System.getProperty("java.class.path")
        val process = ProcessBuilder(listOf(java, "-cp", classes, *options, "example.ChatKt") + listOfNotNull(model))
            .redirectOutput(output).redirectError(errors).start()
        process.outputWriter().use { it.write("What is 3 + 4?\n") }
        assertTrue(process.waitFor(5, TimeUnit.MINUTES), "the process does not end")
        return Run(process.exitValue(), output.readText(), errors.readText())
    }

    @Test
    fun `the example answers and ends`(@TempDir folder: Path) {
        val run = chat(folder)
        assertEquals(0, run.status, run.errors)
        assertTrue("7" in run.output, run.output)
    }

    @Test
    fun `the example says what is wrong`(@TempDir folder: Path) {
        val run = chat(folder, model = "/no/such/model")
        assertEquals(1, run.status)
        assertTrue("/no/such/model" in run.errors && "Exception" !in run.errors, run.errors)
    }

    @Test
    fun `the library is found by its path`(@TempDir folder: Path) {
        val list = javaClass.getResource("native/${com.sun.jna.Platform.RESOURCE_PREFIX}/files")!!
        val library = File(list.toURI()).parentFile.resolve(list.readText().trim().lines().last())
        assertTrue("7" in chat(folder, "-Dmynah.library=$library").output)
        val missing = chat(folder, "-Dmynah.library=/no/such/library.so")
        assertEquals(1, missing.status)
        assertTrue("/no/such/library.so" in missing.errors && "Exception" !in missing.errors, missing.errors)
    }
}
