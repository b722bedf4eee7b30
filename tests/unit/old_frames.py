"""One DataFrame as five older versions of pandas pickled it: zlib, base 85.

pd.DataFrame(
    {
        "uid": [7, 8, 9],
        "iid": np.array([1, 2, 3], np.int32),
        "x": [1.5, np.nan, -2.0],
        "ok": [True, False, True],
        "his": [[0], [0, np.int64(7)], []],
        "title": ["A", np.str_("é"), None],
    },
    index=[4, 2, 9],
)
"""

import base64
import zlib

COLUMNS = {
    "uid": [7, 8, 9],
    "iid": [1, 2, 3],
    "x": [1.5, float("nan"), -2.0],
    "ok": [True, False, True],
    "his": [[0], [0, 7], []],
    "title": ["A", "é", None],
}
_PICKLES = {  # (version of pandas, protocol)
    ("0.25.3", 2): (
        "c-nPU2YcI86!l1*L@i}Q2VG2+;nWaHpoP#<T3S&D9uy442uW7*L~J=ndTJA>X<D$|u=n1(Y-kH*kFfp~-"
        "1jW|bC>*m)|1XX=Z<&Z)pW|4u>6u0W}Rx_W=8|7;%XZ#VQo|^Bv$T0vWApin3G5(%n~6;A3^ba;Re1{4zm@@x5nHc)Yg})&iK~WlZGCWn4=e"
        "w(U0Pl+(|dg+E(alrtj`FH_JB~dQWT?TlCe?uNQhKAQg}1_)%qIs%2k^%EGgPz?#y`z;&vAD1yil8s@gFG?G>*<{61PPI64AT5_FGbA7qcFu"
        "#x_VH+nGGITFn!t--DrGZl!PHW<HhBI^{X=Lg+GZrj~sR`npRY;Nj$Pmt++1JDZhK0J3R$9BTD4)-"
        "7`HwF3XABE0wr7esM=zuakGv9=sFg>nrHV6&WlFC)j^zsCUWgTH6ND$qF3xoY&a+h!eA+3TpN|^2fZ;-Z{Q6O>Zs0joLa}-"
        "<uH!{D=sMT<T&`-dl2d{gGh8AQOxJNKZ{_3-;WC+1mSLcs(^{-LGN*(<&Yt1(3kwL9QOPS6-"
        "}~b`F6UIqD;Nd^uC%#|c{RgTZV^LzJB+Jk7}qeYkzr6E4Xlj=86Cp4GLY*ShA9w!YzWt@5Edue*X-fp_F{MY)il=0DAqIFAh5x1yS-7m-N>-"
        "1<Mt*#&`zi~Cifkk&}J#Mg~1TGxg)hzO63_wI#Rc^OF4*JWd@Alw&Q1TyUJi5*(T!x%H78{>E{lHI|T|IKX*w#cQb77__-"
        "(cW9Lwme(q&3rJqH|__<H{Nh?1|SW@0*a0E&nc~{DhGK@+2l$7UuA+@bXhxvXZVHGj18;KJfzR<DC7M=bwA0R({T{T2SI`bK-"
        "4NNeAHa}23wGJUK#|do9LC6Fmh8^uf89nst6WD2!qC5$+`=#8Zl$&CBpn(S&cID|{)NB%cNawwrM#b)~7N3?W?P1ufDptqCDxpXCGE1NyH)M"
        "mM*<$YNV$MkBqYRJ5%*Pe;3BH7wPsYrr7@lr1pXp*gE1AzRJRdV(P|O$kQewUoGhb$SrNw-;i}{*lzRvJQ%zRTZ-{Q-"
        "O`F6~FhvD58^Sv(S`;z$q!-s0?>i9@8Ki2sQE(gc{nEVODr)~|OsZqBon;XpL@Oceiw1%ria|2)Uj6!WW(?fh!#MgQa-"
        "{|V)4yzoI%>lkf?Qmr*Fv%>$LB}-h$fIWPO;ZcYo<jrjknABN*~GUD-"
        "$gYX*7*Uxi67*LjD*auiSHSHAmB#{j3_|%9RWWv{7k?v64<VQG_?W&zcTzr!0!?mQ$UZAk-#4evymHx0)MuKq)Ag6e---"
        "UkB0it;cxY9R$O7JFUdbe{2STX{{f4PN)Z"
    ),
    ("1.1.5", 4): (
        "c-oaz-D=c86izlj-PRVVSgZ&I1$A2_xUh&7q3DWGLsw9|T*4$f-"
        "3d*yOES?eSgaRYEzDhy@1fuW_&UCUcY0=$g|zO{Hi68{nfcE5ot!i0(EN62Y3dQnLz47J<^+S3I=d-}DTw(Ogp-"
        "$Qegf;C;Q$)K^x}RBVy${SOgK#w5@k+I64Iw>24eAfGzj)~igf{RbP>OL8rY-zG;@5CA>D$P&=20Wv>||95!Pg`h<hjo#7dIK!%+c`^N5EeP"
        "00xPyp#rmB;#owaD)g;9Rx9lbn3_nxY`)nx({FA4K!Tcwa36#gw^Atp^Q+}UO$H8uf?t*^pDW#bYA_%M}6Ea4*s!>!N|iN2qTnVeIIdyJzTO"
        "7!?t+HBMKCc3Nw*^u9F|3L$)MtO^X~w(liV(`0a#0YE=Se%j`P4Atke$6Tt>9)<i8lCG+VSnVOW@UNwuvYPE8lFGs*__MlKjF`EBbkmpG8>{"
        "fW#lc_9)&p%t`_^BlMrC4To-bCD7d9XfB-E2i+>pVq^dKt5EzBj*F@pfmLH$&I-"
        "=}v0O$!%E=T`VkuqpPuN!p;H`5n1tUvt6Hr3FY4w`ZHj$<bKyY6Nzi$TSu<8`Fn!s$U0I<T4Gmc)Pz1RWU%|BlG%#@?p_vf@3Mf#1p&1Z&|v"
        "FqgH{Xl0EGR}X||kZ(F6!y8ej{;_GNp?05Q^Tzb8>HciN(k{mH{kyo_}}53xfe@?K_97|2U56X)uZIG19+vmN$>{d6@cyJCH-"
        "tTN42YgbtfOjOm{S60)tODoMYb^Sf;E7(M3-<mX3FQ%NRMuxRu5zety9zgCp{{U~`0=@"
    ),
    ("1.3.5", 5): (
        "c-oaz-)q!B5WZaQXIlyu)I)8-"
        "mvVhMC=}^~Q1nEo!4ni8kGM%Tx1pQl*lcJE7WJXEg?)1@_}}>N_#gPDvzw%MEtS?lGP~K``M#N*Z$3A__nI~Hs5?`V1SA{ysi1>UkeGt%z95"
        "pkG~;iu@db{cuNrPV5un!Qw?~PjA|X5*#3UgTDl$+@&w1+ay)Nc>ysx@pp7=6NIj**+M97G6Tu_g$cjf8xxV4+meb-EI^D(@IK3m>60@X-"
        "@C<dpVjU;$#CCTIIVc`RZR75_gMK=^_?B!utP&n@u!PeTP?Uc4#T2M{n2W=n^r#fs^kGA3L^s5GTY-"
        "K%#(P;GQ4?gDO)DYdV9Qy>6H3W&<RL9FBE~5m=H!~jj+Kp4gO_ug@f-hTS%d=3}N*M*a*FRq>saW{d@wGKA_5f*Y&1kT-f01C1H3hbgv-"
        "+*@s+1JZ@14?qDu4Vm*x~knVb>k|R@nAMtd@cCHs>?_5pD#soyLto>h4@=#5rCJ5rW_qFS&yHX_85i`x38+^;8=R(Jbl<JBFd<K|x1nQv)N("
        "H}ko8cbVc2;+>75KgQz(ty5zkR4eldC%ORH>abIlo}o;~ST)ap3GMj(=9MI4a1Ez}E{Ba@)rk?+xm(AD)+}-"
        "fh^2a$brjG8iYg)*3VFfRBHGpeG>sG0tj0#t0m>Yh#{wNR3#*V@IN>@RW#>@<%8vBcIzUaNdpKp0u5cMiPC?T`N$OTH%FS(@s)yGRx)A5WZX"
        "%y-&GBGrz8)K;tzVTWTXpQ?ssw%%U{rswHKAs)Vd!wG4(7&G5)&V$x=EzO-h|Dg<%XP0%<w+pJl)USAfKXEiKH$k9>pegn&sZ$FOBosmj"
    ),
    ("1.5.3", 3): (
        "c-nQ8dwbMG7{#-fE^R<92!aACf)H-2l?oNX0?R$Jz{n*COPpk<O>8#1Co{1vuyWDvw(zC=I(!5F!+EpW_OU?rd3Gk5H}gB^WM-"
        "a~{0@(sTvq*dBC0b9Zwd1}SNvkugK_XV3SAT}r)(I8+nP=A|2M)|i6rKcthRW}XGJ2-"
        "b5Yx$yEeEpQMQKlZWMZQ?FG|K<4)+$MZ)#y4HF}NoVGfPgNa*dq(Yt~e9?3h;kRR{lGIlwDuXIh&zX&4gKaEfv{vvi)`!Wk(XtErSL$I?UfN"
        "WP9c|_Vr>ISYQ}}RYxsQ(+#x1+#6!f!G*j%sIufEY&_GcRkTfCLpjt$1(8qM3Wyv4@~TRq=PL#;BFri?;g6Smm~vHSRhVY^-"
        "IV+X^h!AMXEGLfGJTH#KHU8@Rr2f3(8d`_aiVE9st3f`8pN6XnnTB*E5624N{>jm5NL`6dGWB8ho`xy?bAuU24WH_{nJe(tErf`IiM;WT`Mt"
        "(yH4E+8(owrZ(0RF+Z3KN7c+9kq&$8e1BlMLUl;g1vk1jE!S{)ZgzP2eQqe`Gi{{0vWU`YjPZX%VG@QNXmq8RC`fGV#tboFiV1;rtr!0`V>~"
        "T(YuQH1BfGyFP_0#JkF1lihVBJ^RnzN(0xd2I{uK8@O)S#(Nf|^m)Yf+P)Et*G7j+1UGwN48Mp5Ze?!H;&yN&r{A8y9irc5aE4)PA7y(~;ht"
        "A3zorR(?cqMdgSt>?kkhhVA*T-+Typvw16S}G@U3-"
        "QuqhUVta@Au(~ZTvdxf5uXuiKJuMl0#47PSt?|IA)V+<(9kl}ZVv9g4@z}DGBmO~3K4V!3Xy-"
        "@e!%<BT$na}ndI@wSVO28S>Jr$}*Akn6zm!V>PvOv|-9#V!sf_JOb!HXpHwNQ0@GFLm_#ex;Aid-a-"
        "j~E`4$kGy?1mk+Wmh;b1T)$(x3V(V*#(m20O!V-"
        "a;l<!w)8_;Ja>nu;vQrR$XZLPPD4vD0)IcvY#Fa`U`dutL6{?tt_^iZA7cZUdG#o|kdFeLOjy@B(5^lsj5lOsSmZ?|$4-M_JT>"
    ),
    ("2.2.3", 5): (
        "c-oazO>fgc5RGFeO=-lZ8p@^TaIsX0Ll2cA2trVUkq}&vqSe~oWUcs1_F8QvD(Io5mG;Ka-"
        "^1VGA8>=&wM`u=gjmTtyY|j|GqdyjsrR+CI(o=E8BGFO*nXNbd!Eynfn0w|1%0O1U*O>h9K%>zBwpkox7)|VM6f)eQDMh4p$nE5Acs$))L*`"
        ";_UJyAquPZ;p;uh_fV@S@Bn$mz#E7Sy@U*;_lyP=s6OE5+mWMvb4KmNu*emDr3iEQSioUZ}+d*yDYYVccfzSrxC{uaJZnz5<=bzyXj2%-"
        "Nd*Hh6{!biwaykM$$8gLukj4}Q9+LyF3?mUH7;CSHLSMl+9Xw<x6sN0ZzQJ#fFNZa+fln77Q^mmVBIlzkPCoh@BY&Xy_%`mk*TI`)tMOw}+m"
        "H2&Z<=Vn`(H#|$GlEt{?5YCnBGpiU?1S0sHS7BqRLVGKI0OrN%NfIy$ngt{4^;<Uit#-"
        "%5TdxY!m%aRrwUAh6fe7s*0k)kY2aboU8^k!GJDiFrJ}1MeB6<bJ;I^8d23Xd~-"
        "Tz`UTDqg3a)%9|M1{fZy%>Q9n$@as~)FwZ1nVF2g<MX*vCNo&u0fZmmiqV27-"
        "*JzAikZjgi>kQeHm3M7%eX04?apxl7(^Oq`Z?lwvHar0IsB+W7mK$@YNjYDkZbctIYs>T$dh#08Aq?IVix}^%0XFNx6F4`Sbi(a?rid^`nW1"
        "cqmcv2xSHKFcNKln>fF*d&k5;H+{&{)A96#|8S46;w=5nbrzeHumSK|z8tL)}opNJKq`qCYQ6&;AA3c$$3"
    ),
}
VERSIONS = list(_PICKLES)


def pickled(version: tuple[str, int]) -> bytes:
    """The pickle as it was written."""
    return zlib.decompress(base64.b85decode(_PICKLES[version]))
