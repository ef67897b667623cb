/*
 * One MD5 kernel for 2 * WIDTH chains; included once for each width, with WIDTH, KERNEL (its name)
 * and TARGET (the instruction set) defined.
 */

#define CAT_(a, b) a##_##b
#define CAT(a, b) CAT_(a, b)
#define VEC CAT(KERNEL, vec)
#define LOAD CAT(KERNEL, load)
#define LANES (2 * WIDTH)

typedef uint32_t VEC __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define SHUFFLE __builtin_shufflevector

/* Bring the 16 words of a block of WIDTH inputs into 16 vectors, word i of all inputs in m[i]. */
TARGET static inline __attribute__((always_inline)) void LOAD(const uint8_t **data, size_t at, VEC m[16]) {
#if WIDTH == 4
    for (int part = 0; part < 16; part += 4) {
        VEC r[4], t[4];
        for (int i = 0; i < 4; i++) memcpy(&r[i], data[i] + at + 4 * part, 16);
        for (int i = 0; i < 4; i += 2) {
            t[i] = SHUFFLE(r[i], r[i + 1], 0, 4, 1, 5);
            t[i + 1] = SHUFFLE(r[i], r[i + 1], 2, 6, 3, 7);
        }
        m[part] = SHUFFLE(t[0], t[2], 0, 1, 4, 5);
        m[part + 1] = SHUFFLE(t[0], t[2], 2, 3, 6, 7);
        m[part + 2] = SHUFFLE(t[1], t[3], 0, 1, 4, 5);
        m[part + 3] = SHUFFLE(t[1], t[3], 2, 3, 6, 7);
    }
#elif WIDTH == 8
    for (int part = 0; part < 16; part += 8) {
        VEC r[8], t[8], u[8];
        for (int i = 0; i < 8; i++) memcpy(&r[i], data[i] + at + 4 * part, 32);
        for (int i = 0; i < 8; i += 2) { /* pairs of words */
            t[i] = SHUFFLE(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
            t[i + 1] = SHUFFLE(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
        }
        for (int i = 0; i < 8; i += 4) { /* fours */
            u[i] = SHUFFLE(t[i], t[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            u[i + 1] = SHUFFLE(t[i], t[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
            u[i + 2] = SHUFFLE(t[i + 1], t[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
            u[i + 3] = SHUFFLE(t[i + 1], t[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
        }
        for (int i = 0; i < 4; i++) { /* eights */
            m[part + i] = SHUFFLE(u[i], u[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
            m[part + i + 4] = SHUFFLE(u[i], u[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
        }
    }
#else
    VEC r[16], t[16];
    for (int i = 0; i < 16; i++) memcpy(&r[i], data[i] + at, 64);
    for (int i = 0; i < 16; i += 2) { /* pairs of words */
        t[i] = SHUFFLE(r[i], r[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        t[i + 1] = SHUFFLE(r[i], r[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    for (int i = 0; i < 16; i += 4) { /* fours */
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = SHUFFLE(t[i + j], t[i + j + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            r[i + 2 * j + 1] = SHUFFLE(t[i + j], t[i + j + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
    }
    for (int i = 0; i < 16; i += 8) { /* eights */
        for (int j = 0; j < 4; j++) {
            t[i + j] = SHUFFLE(r[i + j], r[i + j + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
            t[i + j + 4] = SHUFFLE(r[i + j], r[i + j + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
        }
    }
    for (int j = 0; j < 8; j++) { /* sixteens */
        m[j] = SHUFFLE(t[j], t[j + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        m[j + 8] = SHUFFLE(t[j], t[j + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
#endif
}

/* Advance every chain by so many blocks, and the pointers with them. */
TARGET static void KERNEL(uint32_t (*state)[MAX_LANES], const uint8_t **data, size_t blocks) {
    VEC s[2][4];
    for (int group = 0; group < 2; group++)
        for (int i = 0; i < 4; i++) memcpy(&s[group][i], &state[i][group * WIDTH], sizeof(VEC));
    for (size_t at = 0; at < blocks * BLOCK; at += BLOCK) {
        VEC m0[16], m1[16];
        LOAD(data, at, m0);
        LOAD(data + WIDTH, at, m1);
        VEC a = s[0][0], b = s[0][1], c = s[0][2], d = s[0][3];
        VEC a1 = s[1][0], b1 = s[1][1], c1 = s[1][2], d1 = s[1][3];
#define BOTH(F, w, x, y, z, i, r, k)                                                             \
    w += m0[i] + UINT32_C(k);                                                                    \
    w##1 += m1[i] + UINT32_C(k);                                                                 \
    F(w, x, y, z)                                                                                \
    F(w##1, x##1, y##1, z##1)                                                                    \
    w = (w << r) | (w >> (32 - r));                                                              \
    w##1 = (w##1 << r) | (w##1 >> (32 - r));                                                     \
    w += x;                                                                                      \
    w##1 += x##1;
#if WIDTH == 16
        STEPS(ADD_F1, ADD_F2_AT_ONCE, ADD_F3, ADD_F4, BOTH)
#else
        STEPS(ADD_F1, ADD_F2, ADD_F3, ADD_F4, BOTH)
#endif
#undef BOTH
        s[0][0] += a, s[0][1] += b, s[0][2] += c, s[0][3] += d;
        s[1][0] += a1, s[1][1] += b1, s[1][2] += c1, s[1][3] += d1;
    }
    for (int group = 0; group < 2; group++)
        for (int i = 0; i < 4; i++) memcpy(&state[i][group * WIDTH], &s[group][i], sizeof(VEC));
    for (int lane = 0; lane < LANES; lane++) data[lane] += blocks * BLOCK;
}

#undef CAT_
#undef CAT
#undef VEC
#undef LOAD
#undef LANES
#undef SHUFFLE
#undef WIDTH
#undef KERNEL
#undef TARGET
