// The nucleus: everything that runs at ring 0. Integer instructions only, and as few of them as can
// be, since a KVM without hardware virtualisation emulates them one by one.

.section .note.pvh, "a", @note
.balign 4
.long 4, 4, 18                          // sizes of name and descriptor; XEN_ELFNOTE_PHYS32_ENTRY
.asciz "Xen"
.long pvh_start

// ---------------------------------------------------------------------------------------------
// Tables. Accessed, dirty and busy bits are set beforehand wherever a processor might set them at
// a moment of its own choosing.

.section .page_tables, "aw"
.balign 4096
page_map:                               // level 4: 0-512 GiB
    .quad page_directory_pointers + 0x67
    .fill 511, 8, 0
page_directory_pointers:                // level 3: 0-4 GiB
    .set n, 0
    .rept 4
    .quad page_directories + 4096 * n + 0x67
    .set n, n + 1
    .endr
    .fill 508, 8, 0
page_directories:                       // level 2: user pages of 2 MiB, but the first in pages of 4 KiB
    .quad first_pages + 0x67
    .set n, 1
    .rept 2047
    .quad (n << 21) + 0xe7
    .set n, n + 1
    .endr
first_pages:                            // level 1: page 0 and the stack's guard page are not there
    .set n, 0
    .rept 512
    .if n == 0 || n == 0x100
    .quad 0
    .else
    .quad (n << 12) + 0x67
    .endif
    .set n, n + 1
    .endr

.data
.balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            // 0x08 ring 0 code
    .quad 0x00cf93000000ffff            // 0x10 ring 0 data
gdt_tss:
    .quad 0x0000890000000067, 0         // 0x18 task state; the base is filled in at boot
    .quad 0x00cff3000000ffff            // 0x28 ring 3 data (selector 0x2b)
    .quad 0x00affb000000ffff            // 0x30 ring 3 code (selector 0x33)
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 48 * 16 - 1
    .quad idt
no_idt_pointer:
    .word 0
    .quad 0
.balign 16
task_state:
    .long 0
    .quad ring0_stack_top               // RSP0
    .fill 22, 4, 0
    .word 0, 104                        // no I/O permission map
.balign 16
idt:                                    // offsets are filled in at boot
    .rept 48
    .word 0, 8, 0x8e00, 0
    .quad 0
    .endr

.bss
.balign 16
    .skip 4096
ring0_stack_top:

// ---------------------------------------------------------------------------------------------
// Boot: 32 bits, flat segments, paging off, ebx = PVH start info.

.section .text.nucleus, "ax"
.code32
.globl pvh_start
pvh_start:
    cld
    mov ebp, ebx
    lgdt [gdt_pointer]
    mov eax, offset page_map
    mov cr3, eax
    mov eax, 0x620                      // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080                 // EFER.LME
    mov eax, 0x100
    xor edx, edx
    wrmsr
    mov eax, 0x80000033                 // paging, protection, native FPU errors; no emulation, no task switched
    mov cr0, eax
    .byte 0xea                          // far jump to 64-bit code
    .long long_mode
    .word 8

.code64
long_mode:
    mov eax, 0x10
    mov ss, eax
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov esp, offset ring0_stack_top

    mov eax, offset task_state
    mov [gdt_tss + 2], ax
    shr eax, 16
    mov [gdt_tss + 4], al
    mov [gdt_tss + 7], ah
    mov eax, 0x18
    ltr ax

    mov edi, offset idt
    mov eax, offset exception_stubs
    mov ecx, 32
1:  call set_handler
    add eax, 16
    dec ecx
    jnz 1b
    mov eax, offset irq_other
    mov ecx, 16
2:  call set_handler
    dec ecx
    jnz 2b
    mov edi, offset idt + 0x20 * 16
    mov eax, offset irq_timer
    call set_handler
    mov edi, offset idt + 0x24 * 16
    mov eax, offset irq_com1
    call set_handler
    mov edi, offset idt + (0x20 + {virtio_first}) * 16
    mov eax, offset irq_virtio
    mov ecx, {virtio_slots}
4:  call set_handler
    dec ecx
    jnz 4b
    mov edi, offset idt + 3 * 16
    mov eax, offset gate
    call set_handler
    mov byte ptr [idt + 3 * 16 + 5], 0xee   // ring 3 may use it
    lidt [idt_pointer]

    // i8259 pair: vectors 0x20-0x2f, 8086 mode with automatic EOI; only the timer, COM1, the virtio slots and
    // the cascade unmasked.
    mov al, 0x11
    out 0x20, al
    out 0xa0, al
    mov al, 0x20
    out 0x21, al
    mov al, 0x28
    out 0xa1, al
    mov al, 4
    out 0x21, al
    mov al, 2
    out 0xa1, al
    mov al, 3
    out 0x21, al
    out 0xa1, al
    mov al, {mask} & 0xff
    out 0x21, al
    mov al, {mask} >> 8
    out 0xa1, al

    // Where there is a local APIC, let it pass the i8259's interrupts on ("virtual wire mode").
    mov eax, 1
    cpuid
    test edx, 1 << 9
    jz 3f
    mov eax, 0xfee00000
    mov dword ptr [rax + 0xf0], 0x1ff   // on; spurious vector 0xff
    mov dword ptr [rax + 0x350], 0x700  // LINT0: ExtINT
3:

    mov edi, ebp
    xor ebp, ebp
    push 0x2b
    push offset stack_top - 8           // as if called: rsp is 8 modulo 16
    push 0x202                          // interrupts on
    push 0x33
    push offset runtime_start
    iretq

// Gives the gate at rdi the handler at eax; steps rdi to the next gate.
set_handler:
    mov [rdi], ax
    mov edx, eax
    shr edx, 16
    mov [rdi + 6], dx
    add edi, 16
    ret

// ---------------------------------------------------------------------------------------------
// Interrupts. The counters are what the runtime looks at; the witness folds in where exactly each
// interrupt came, so that a replay which delivers one a single instruction late ends up elsewhere.

.macro count_interrupt line
    push rax
    mov rax, [rsp + 8]                  // the interrupted instruction
    add rax, [LOCKSTEP_SAFEPOINT]       // the safepoints passed so far
    rol qword ptr [LOCKSTEP_WITNESS], 5
    add [LOCKSTEP_WITNESS], rax
    inc qword ptr [LOCKSTEP_INTERRUPTS + 8 * \line]
    pop rax
    iretq
.endm

irq_timer:
    count_interrupt 0
irq_com1:
    count_interrupt 1
irq_virtio:
    count_interrupt 2
irq_other:                              // spurious
    iretq

// ---------------------------------------------------------------------------------------------
// The gate: `int3` at ring 3, function in rax, arguments in rdi and rsi, result in rax. Changes rax, rcx,
// rdx, rsi, rdi. Runs with interrupts off.

gate:
    cmp rax, {gates}
    jae gate_unknown
    jmp [gate_table + rax * 8]

.section .rodata.nucleus, "a"
.balign 8
gate_table:                             // in the order of gate.rs's `Function`
    .quad gate_idle, gate_out, gate_in, gate_write, gate_read, gate_exit, gate_spin, gate_wait, gate_die
.section .text.nucleus, "ax"

gate_unknown:
    mov rax, -1
    iretq

// Sleeps until an interrupt, unless the number of interrupts so far is no longer rdi: an interrupt between
// the caller's look at the counters and this test is not slept through, and `sti` lets none in before `hlt`.
gate_idle:
    mov rax, [LOCKSTEP_INTERRUPTS]
    add rax, [LOCKSTEP_INTERRUPTS + 8]
    add rax, [LOCKSTEP_INTERRUPTS + 16]
    cmp rax, rdi
    jne 1f
    sti
    hlt
1:  iretq

// Waits for an event of the machine's, unless the number of interrupts so far is no longer rdi.
gate_wait:
    mov rax, [LOCKSTEP_INTERRUPTS]
    add rax, [LOCKSTEP_INTERRUPTS + 8]
    add rax, [LOCKSTEP_INTERRUPTS + 16]
    cmp rax, rdi
    jne 1f
    mov edx, {wait_port}
    out dx, al
1:  iretq

// Writes the byte sil to port di.
gate_out:
    mov edx, edi
    mov eax, esi
    out dx, al
    iretq

// Reads a byte from port di.
gate_in:
    mov edx, edi
    xor eax, eax
    in al, dx
    iretq

// Writes rsi bytes at rdi to COM1. An empty transmitter takes sixteen bytes without being asked again.
gate_write:
    xchg rsi, rdi
1:  test rdi, rdi
    jz 4f
    mov edx, 0x3fd
2:  in al, dx
    test al, 0x20
    jz 2b
    mov edx, 0x3f8
    mov ecx, 16
    cmp rdi, rcx
    jae 3f
    mov ecx, edi
3:  sub rdi, rcx
    rep outsb
    jmp 1b
4:  iretq

// Reads what COM1 has received, at most rsi bytes, to rdi; returns how many.
gate_read:
    xor ecx, ecx
1:  cmp rcx, rsi
    jae 2f
    mov edx, 0x3fd
    in al, dx
    test al, 1
    jz 2f
    mov edx, 0x3f8
    in al, dx
    mov [rdi + rcx], al
    inc rcx
    jmp 1b
2:  mov rax, rcx
    iretq

// Ends the machine with exit code dil.
gate_exit:
    mov eax, edi
    out 0xf4, al
1:  cli
    hlt
    jmp 1b

// With interrupts off: rdi times one read of COM1's line status (an exit) and about rsi instructions.
gate_spin:
    mov edx, 0x3fd
1:  dec rdi
    js 3f
    in al, dx
    mov rcx, rsi
    shr rcx, 1
2:  dec rcx
    jns 2b
    jmp 1b
3:  iretq

// Ends in one of the ways no guest should: rdi = 0 triple fault, 1 `hlt` with interrupts off, 2 endless loop
// with interrupts off.
gate_die:
    cmp edi, 1
    je 1f
    ja 2f
    lidt [no_idt_pointer]
    ud2
1:  hlt
    jmp 1b
2:  jmp 2b

// ---------------------------------------------------------------------------------------------
// Exceptions: report and stop with exit code 0x60 + vector.

.balign 16
exception_stubs:
    .set n, 0
    .rept 32
    .balign 16
    .if ((0x60227d00 >> n) & 1) == 0    // these vectors push no error code
    push 0
    .endif
    .byte 0x6a, n                       // push the vector
    jmp exception
    .set n, n + 1
    .endr

.balign 16
exception:                              // on the stack: vector, error code, rip, cs, rflags, rsp, ss
    mov ebx, offset report_vector
    mov rbp, [rsp]
    call report
    mov rbp, [rsp + 8]
    call report
    mov rbp, [rsp + 16]
    call report
    mov rbp, [rsp + 40]
    call report
    mov rbp, cr2
    call report
    mov al, 10
    call put
    mov edi, [rsp]
    add edi, 0x60
    jmp gate_exit

// Prints the string at rbx, then rbp in hexadecimal; rbx then points behind the string.
report:
1:  mov al, [rbx]
    inc ebx
    test al, al
    jz 2f
    call put
    jmp 1b
2:  mov ecx, 16
3:  rol rbp, 4
    mov eax, ebp
    and eax, 15
    mov al, [hex_digits + rax]
    call put
    dec ecx
    jnz 3b
    ret

// Prints al.
put:
    mov edi, eax
    mov edx, 0x3fd
1:  in al, dx
    test al, 0x20
    jz 1b
    mov edx, 0x3f8
    mov eax, edi
    out dx, al
    ret

.section .rodata.nucleus, "a"
hex_digits:
    .ascii "0123456789abcdef"
report_vector:
    .asciz "\r\nguest exception: vector "
    .asciz ", error code "
    .asciz ", rip "
    .asciz ", rsp "
    .asciz ", cr2 "
.text
