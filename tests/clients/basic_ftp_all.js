// Everything that Node's basic-ftp can do.
//
// Arguments: host, port, protection (plain, explicit, implicit), CA file, password, folder, sample, new folder.
// Mirrors the sample into <folder>/down, and <folder>/original into the new folder.
"use strict"
const assert = require("node:assert")
const fs = require("node:fs")
const { Readable, Writable } = require("node:stream")
// Installed by tests/run; NODE_PATH says where.
const { Client } = require("basic-ftp")

const [host, port, protection, authority, password, folder, sample, target] = process.argv.slice(2)
const secure = { plain: false, explicit: true, implicit: "implicit" }[protection]

async function content(client, path, offset = 0) {
    const pieces = []
    const sink = new Writable({ write: (piece, _, done) => (pieces.push(piece), done()) })
    await client.downloadTo(sink, path, offset)
    return Buffer.concat(pieces).toString()
}

async function main() {
    const client = new Client(20_000)
    const secureOptions = { ca: fs.readFileSync(authority) }
    await client.access({ host, port: Number(port), user: "admin", password, secure, secureOptions })
    await client.downloadToDir(`${folder}/down`, sample)
    await client.ensureDir(target)
    await client.uploadFromDir(`${folder}/original`, target)

    const work = `${target}/work`
    await client.ensureDir(work)
    assert.strictEqual(await client.pwd(), work)
    await client.uploadFrom(Readable.from(["0123456789"]), "new")
    await client.appendFrom(Readable.from(["abc"]), "new")
    assert.strictEqual(await content(client, "new"), "0123456789abc")
    assert.strictEqual(await content(client, "new", 4), "456789abc")
    assert.strictEqual(await client.size("new"), 13)
    const age = Date.now() - (await client.lastMod("new")).getTime()
    assert(Math.abs(age) < 60_000, `${age} ms`)
    await client.rename("new", 'the "renamed" one')
    const [entry, ...others] = await client.list()
    assert.deepStrictEqual([entry.name, entry.size, others.length], ['the "renamed" one', 13, 0])
    await client.remove(entry.name)
    assert.deepStrictEqual(await client.list(), [])
    await client.removeDir(work)
    await assert.rejects(client.cd(work), { code: 550 })

    // Refused transfers, one right after the other: each is refused, and the session goes on.
    for (let turn = 0; turn < 10; turn++) {
        await assert.rejects(client.downloadTo(`${folder}/none`, `${target}/missing`), { code: 550 })
        await assert.rejects(client.list(`${target}/missing`), { code: 550 })
        await assert.rejects(client.uploadFrom(Readable.from(["x"]), `${target}/missing/new`), { code: 550 })
    }
    assert.strictEqual(await client.pwd(), target)
    client.close()
}

main().catch((error) => {
    console.error(error)
    process.exitCode = 1
})
